"""Weights with the values -a, 0 and b."""

from qtool.qat.quantizers.ternary.ttq import TTQ
from qtool.qat.quantizers.ternary.twn import TWN

__all__ = ["TTQ", "TWN"]
