"""PACT: the clipping level of activations learns."""

import dataclasses
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import ActivationModule, GridBase, QatQuantizer, WeightModule
from qtool.qat.quantizers.dorefa import DoReFa
from qtool.qat.quantizers.learned_step import RoundedStep, StepGradient, learned_step
from qtool.qat.quantizers.scales import (
    MIN_SCALE_SHARE,
    clamp_below,
    code_limits,
    plan_scale,
    raw_tensor,
)
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class PACT(QatQuantizer):
    """Activations are clipped at a learned level alpha: dy/dalpha = 1 above alpha, 0 below.

    y = round(clip(x, 0, alpha) n / alpha) alpha / n with n = 2^k - 1. Weights are those of dorefa.
    Weight decay applies to alpha, as in the paper. On a grid with a zero point the lower limit
    is proportional to alpha.

    Source: Choi et al. 2018, "PACT", sec. 3, arXiv:1805.06085. Departure: alpha starts from the
        calibrated range instead of 10.
    """

    starts_from_codes: ClassVar[bool] = False
    trains_binary: ClassVar[bool] = True

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        return DoReFa().weight(params, weight)

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return PACTActivation(params)


@dataclasses.dataclass(frozen=True)
class PACTGradient(StepGradient):
    """Gradient of the scale: the limit's code outside the limits, 0 inside.

    Source: Choi et al. 2018, eq. 3, arXiv:1805.06085.
    """

    def scale_gradient(self, dy: T, dx: T, rounded: RoundedStep) -> T:
        """Return sum(dy * code) over the clipped elements, codes counted from the zero point.

        Args:
            dy: gradient of the output.
            dx: gradient of x, 0 where x is clipped.
            rounded: the forward pass.
        """
        output, scale = rounded.output, rounded.scale
        if rounded.is_wide:
            return rounded.scale_sum(dy - dx, output) / scale
        ds = rounded.scale_sum(dy, output) / scale
        return ds - rounded.scale_sum(dx, output) / scale


class PACTActivation(GridBase):
    """Activations clipped at a learned level, the value of the grid's highest code.

    Attributes:
        alpha: clipping level, learned, shape [1].
        floor: lowest value of alpha, shape [1].
        gradient: of the step.
    """

    decays = True  # the paper's L2 penalty on alpha
    scale_tensor: str | None = "alpha"
    refines = True
    gradient: StepGradient = PACTGradient()
    floor: T

    def __init__(self, params: QuantParams) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
        """
        super().__init__(params)
        # At least 1: where the calibrated range ends at 0, the zero point is the highest code.
        self.codes_above_zero = max(code_limits(params)[1], 1)
        self.steps_of_scale = float(self.codes_above_zero)
        level = float(params.scale) * self.codes_above_zero
        self.alpha = nn.Parameter(torch.tensor([level], dtype=torch.float32))
        self.register_buffer("floor", self.alpha.detach() * MIN_SCALE_SHARE, persistent=False)

    @property
    def scale(self) -> T:
        """Scale of the grid that ends at alpha, shape [1]."""
        return self.alpha / self.codes_above_zero

    def forward(self, x: T) -> T:
        """Clip and round activations."""
        limits, finer = code_limits(self.params), self.steps_per_code
        return learned_step(x, self.scale, limits, self.gradient, finer=finer)

    def project(self) -> None:
        """Clamp the level to positive values."""
        clamp_below(raw_tensor(self, "alpha"), self.floor)

    def freeze(self) -> QuantParams:
        """Return the learned grid."""
        return replace(self.params, scale=plan_scale(self.scale, self.params))
