"""LSQ: the step size of every grid learns with the weights."""

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch

    from qtool.qat.quantizers.grids import Quantizer


@dataclass(frozen=True)
class LSQ:
    """Learned step size: the scale's gradient is round(x/s) - x/s inside, the limit's code outside.

    The gradient of each scale is multiplied by 1 / sqrt(N * qmax), N being the weights or the
    features it serves. Starts from the scales of calibration. Weights of 8 bits follow their range.

    Args:
        gradient_scale: multiplies that factor.
    Source: Esser et al. 2020, arXiv:1902.08153. Departures: weights per channel count N
        per channel; scales start from the calibrated ones, not 2 mean|v| / sqrt(qmax); an
        asymmetric grid keeps its zero point.
    """

    _: KW_ONLY
    gradient_scale: float = Field(default=1.0, gt=0)

    def weight(self, params: QuantParams, weight: "torch.Tensor") -> "Quantizer":
        """The module of one layer's weights."""
        from qtool.qat.quantizers.grids import learned_weight

        return learned_weight(params, weight, self.gradient_scale)

    def activation(self, params: QuantParams) -> "Quantizer":
        """The module of one activation grid."""
        from qtool.qat.quantizers.grids import LearnedScaleActivation

        return LearnedScaleActivation(params, self.gradient_scale)
