"""LSQ+: the zero point of activations learns too."""

import dataclasses
from dataclasses import KW_ONLY

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import ActivationModule, WeightModule
from qtool.qat.quantizers.learned_step import RoundedStep, learned_step
from qtool.qat.quantizers.lsq import LearnedStepQuantizer, LSQActivation, LSQGradient, lsq_weight
from qtool.qat.quantizers.scales import freeze_activation
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class LSQPlus(LearnedStepQuantizer):
    """LSQ with learned zero points z of activations: dy/dz = -s outside, 0 inside.

    y = (round(clip(x / s + round(z), lo, hi)) - round(z)) * s. Zero points learn as real numbers
    and are rounded in every step, so 0 stays on the grid. Symmetric grids are those of lsq.

    Args:
        gradient_scale: as for lsq.
    Source: Bhalgat et al. 2020, "LSQ+", sec. 3, arXiv:2004.09576; gradients of scale and zero point
        as in Nagel et al. 2021, sec. 4.1, arXiv:2106.08295. Departure: the integer zero point
        learns, not a real offset, which no file could hold.
    """

    _: KW_ONLY
    gradient_scale: float = Field(default=1.0, gt=0)

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        return lsq_weight(params, weight, LSQGradient(self.gradient_scale))

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        if params.spec.symmetric:
            return LSQActivation(params, LSQGradient(self.gradient_scale))
        return LSQPlusActivation(params, LSQPlusGradient(self.gradient_scale))


@dataclasses.dataclass(frozen=True)
class LSQPlusGradient(LSQGradient):
    """Gradient of the zero point: -s outside the limits, 0 inside; that of the scale is LSQ's.

    Source: Nagel et al. 2021, sec. 4.1, arXiv:2106.08295.
    """

    def zero_gradient(self, dy: T, dx: T, rounded: RoundedStep) -> T:
        """Return -s * sum(dy) over the clipped elements, in the scale's shape.

        Args:
            dy: gradient of the output.
            dx: gradient of x, 0 where x is clipped.
            rounded: the forward pass.
        """
        return (dx.sum() - dy.sum()).reshape(rounded.scale.shape) * rounded.scale


class LSQPlusActivation(LSQActivation):
    """Activations on an asymmetric per-tensor grid with a learned scale and zero point.

    Attributes:
        zero: learned as a real number, shape [1].
    """

    def __init__(self, params: QuantParams, gradient: LSQPlusGradient) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            gradient: of the step; its factor is multiplied by 1 / sqrt(N * qmax).
        """
        super().__init__(params, gradient)
        self.zero = nn.Parameter(torch.tensor([float(params.zero_point)]))

    def forward(self, x: T) -> T:
        """Round activations to the grid."""
        limits = (self.params.spec.qmin, self.params.spec.qmax)
        gradient, finer = self.gradient_of(x), self.steps_per_code
        return learned_step(x, self.scale, limits, gradient, self.zero, finer)

    def project(self) -> None:
        """Clamp the scale to positive values, the zero point to the codes."""
        super().project()
        with torch.no_grad():
            self.zero.clamp_(self.params.spec.qmin, self.params.spec.qmax)

    def freeze(self) -> QuantParams:
        """Return the learned grid, its zero point rounded."""
        return freeze_activation(self.scale, self.zero, self.params)
