"""Weights with two values, and activations with two."""

from qtool.qat.quantizers.binary.binaryconnect import BinaryConnect
from qtool.qat.quantizers.binary.bwn import BWN
from qtool.qat.quantizers.binary.xnor import XNOR

__all__ = ["BWN", "XNOR", "BinaryConnect"]
