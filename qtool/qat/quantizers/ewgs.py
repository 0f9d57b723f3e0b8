"""EWGS: gradients grow or shrink with the distance to the rounded value."""

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch

    from qtool.qat.quantizers.grids import Quantizer


@dataclass(frozen=True)
class EWGS:
    """Element-wise gradient scaling: g becomes g (1 + delta sign(g) (x - q)).

    There x counts so that the grid is 1 wide on each side of zero. Scales learn as in lsq; with
    delta 0 it is lsq.

    Args:
        delta: how much; the paper finds it from the Hessian or takes 0.001 to 0.1.
        gradient_scale: as for lsq.
    Source: Lee, Kim and Ham 2021, "Network Quantization with Element-wise Gradient Scaling", eq. 5,
        arXiv:2104.00903. Departure: one step size learns, as in lsq, not two bounds.
    """

    _: KW_ONLY
    delta: float = Field(default=0.01, ge=0)
    gradient_scale: float = Field(default=1.0, gt=0)

    def weight(self, params: QuantParams, weight: "torch.Tensor") -> "Quantizer":
        """The module of one layer's weights."""
        from qtool.qat.quantizers.grids import learned_weight

        return learned_weight(params, weight, self.gradient_scale, self.delta)

    def activation(self, params: QuantParams) -> "Quantizer":
        """The module of one activation grid."""
        from qtool.qat.quantizers.grids import LearnedScaleActivation

        return LearnedScaleActivation(params, self.gradient_scale, delta=self.delta)
