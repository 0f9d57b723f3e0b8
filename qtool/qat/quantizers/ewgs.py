"""EWGS: gradients grow or shrink with the distance to the rounded value."""

import dataclasses
from dataclasses import KW_ONLY

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.qat.quantizers.base import ActivationModule, WeightModule
from qtool.qat.quantizers.learned_step import RoundedStep
from qtool.qat.quantizers.lsq import LearnedStepQuantizer, LSQActivation, LSQGradient, lsq_weight
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class EWGS(LearnedStepQuantizer):
    """Element-wise gradient scaling: dL/dx = g (1 + delta sign(g) (x - q)) with g = dL/dq.

    There x and its rounded value q are normalized: the grid is 1 wide on each side of zero. Scales
    learn as in lsq; with delta 0 it is lsq.

    Args:
        delta: size of the change; the paper computes it from the Hessian or takes 0.001 to 0.1.
        gradient_scale: as for lsq.
    Source: Lee, Kim and Ham 2021, "Network Quantization with Element-wise Gradient Scaling", eq. 5,
        arXiv:2104.00903. Departure: one step size learns, as in lsq, not two bounds.
    """

    _: KW_ONLY
    delta: float = Field(default=0.01, ge=0)
    gradient_scale: float = Field(default=1.0, gt=0)

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        return lsq_weight(params, weight, EWGSGradient(self.gradient_scale, self.delta))

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return LSQActivation(params, EWGSGradient(self.gradient_scale, self.delta))


@dataclasses.dataclass(frozen=True)
class EWGSGradient(LSQGradient):
    """Gradient of x: g (1 + delta sign(g) (x - q)) inside the limits; that of the scale is LSQ's.

    Attributes:
        delta: size of the change; 0: none.
    Source: Lee, Kim and Ham 2021, eq. 5, arXiv:2104.00903.
    """

    delta: float = 0.0

    def output_gradient(self, dy: T, rounded: RoundedStep) -> T:
        """Return dy (1 + delta sign(dy) (x - q)), with x - q in units of the grid's half width.

        Args:
            dy: gradient of the output.
            rounded: the forward pass.
        """
        if not self.delta:
            return dy
        rest = rounded.steps.clamp(rounded.lo, rounded.hi) - rounded.codes()
        half_width = max(rounded.hi, -rounded.lo)
        return dy * (1 + (self.delta / half_width) * dy.sign() * rest)
