"""Methods whose weights are not rounded in all of training: noise or a penalty comes first."""

from qtool.qat.quantizers.gradual.nice import NICE
from qtool.qat.quantizers.gradual.regularization import Regularization

__all__ = ["NICE", "Regularization"]
