"""Weights with steps that are not equal, or learned limits between codes."""

from qtool.qat.quantizers.nonuniform.apot import AdditivePowersOfTwo
from qtool.qat.quantizers.nonuniform.kmeans import KMeansCentroids
from qtool.qat.quantizers.nonuniform.lq_nets import LQNets
from qtool.qat.quantizers.nonuniform.n2uq import N2UQ

__all__ = ["N2UQ", "AdditivePowersOfTwo", "KMeansCentroids", "LQNets"]
