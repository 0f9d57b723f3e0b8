"""STE: round in the forward pass, pretend not to in the backward one."""

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch

    from qtool.qat.quantizers.grids import Quantizer


@dataclass(frozen=True)
class STE:
    """Straight-through rounding: gradients pass inside the range and stop outside.

    Args:
        ranges: ``fixed``: calibrated; ``ema``: activations follow a moving average of the limits
            seen, weights their largest magnitude, as Jacob et al. train.
        momentum: weight of the newest batch in that average.
    Source: Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, sec. 3, arXiv:1712.05877.
    """

    _: KW_ONLY
    ranges: Literal["fixed", "ema"] = "fixed"
    momentum: float = Field(default=0.01, gt=0, le=1)

    def weight(self, params: QuantParams, weight: "torch.Tensor") -> "Quantizer":
        """The module of one layer's weights."""
        from qtool.qat.quantizers.fixed import FixedWeight

        return FixedWeight(params, self.ranges == "ema")

    def activation(self, params: QuantParams) -> "Quantizer":
        """The module of one activation grid."""
        from qtool.qat.quantizers.fixed import FixedActivation

        return FixedActivation(params, self.momentum if self.ranges == "ema" else 0.0)
