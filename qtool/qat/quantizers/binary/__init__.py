"""Weights with two values, and activations with two."""

from qtool.qat.quantizers.binary.binaryconnect import BinaryConnect
from qtool.qat.quantizers.binary.bwn import BWN

__all__ = ["BWN", "BinaryConnect"]
