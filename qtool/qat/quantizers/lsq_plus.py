"""LSQ+: the zero point of activations learns too."""

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch

    from qtool.qat.quantizers.grids import Quantizer


@dataclass(frozen=True)
class LSQPlus:
    """LSQ with learned zero points of activations; their gradient is -s outside, 0 inside.

    Zero points learn as real numbers and count rounded, so zero stays exact.

    Args:
        gradient_scale: as for lsq.
    Source: Bhalgat et al. 2020, "LSQ+", arXiv:2004.09576; gradients of scale and zero point as in
        Nagel et al. 2021, sec. 4.1, arXiv:2106.08295. Departure: the integer zero point learns, not
        a real offset, which no file could hold.
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

        return LearnedScaleActivation(params, self.gradient_scale, learns_zero=True)
