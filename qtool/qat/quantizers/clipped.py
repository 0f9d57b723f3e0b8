"""Modules of PACT, DoReFa and SAT: learned clipping levels, squeezed weights."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from qtool.qat.quantizers.fixed import FixedWeight
from qtool.qat.quantizers.functions import (
    FLOOR,
    StepRule,
    as_scale,
    beside,
    code_limits,
    keep_above,
    learned_step,
    straight_through,
)
from qtool.quant.primitives import SMALLEST_SCALE, Codebook, QuantParams

T = torch.Tensor


class ClippedActivation(nn.Module):
    """Activations clipped at a learned level, the value of the grid's highest code."""

    floor: T

    def __init__(self, params: QuantParams, calibrated: bool) -> None:
        """Make the module.

        Args:
            params: the grid that training starts from.
            calibrated: inside the range the level's gradient is q - x/alpha (SAT's calibrated
                gradient), else 0 (PACT).
        """
        super().__init__()
        self.params, self.calibrated = params, calibrated
        self.decays = not calibrated  # the paper's L2 penalty on alpha
        self.above = max(code_limits(params)[1], 1)
        level = float(params.scale) * self.above
        self.alpha = nn.Parameter(torch.tensor([level], dtype=torch.float32))
        self.register_buffer("floor", self.alpha.detach() * FLOOR, persistent=False)

    @property
    def scale(self) -> T:
        """The step that belongs to the level, shape [1]."""
        return self.alpha / self.above

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        rule = StepRule(clips_alone=not self.calibrated)
        return learned_step(x, self.scale, *code_limits(self.params), rule)

    def project(self) -> None:
        """The level stays positive."""
        keep_above(self.alpha, self.floor)

    def freeze(self, x: T | None = None) -> tuple[None, QuantParams]:
        """The grid."""
        return None, replace(self.params, scale=as_scale(self.scale, self.params))


class SqueezedWeight(nn.Module):
    """Weights through tanh on 2^k levels -1 .. 1 without 0, times a scale that does not learn."""

    unit: T
    variance: T

    def __init__(self, params: QuantParams, weight: T, keeps_variance: bool = False) -> None:
        """Make the module.

        Args:
            params: the grid that training starts from; of less than 8 bits.
            weight: the layer's weights as training starts.
            keeps_variance: choose the scale at every step so that the weights' variance stays.
        """
        super().__init__()
        self.params, self.keeps_variance = params, keeps_variance
        self.steps = 2**params.spec.bits - 1
        start = weight.detach()
        self.register_buffer("variance", start.var(correction=0))
        rounded = self._levels(start).detach()
        axis = getattr(params.spec.granularity, "axis", None)
        # Least squares per channel: the levels times this are closest to the weights.
        fit, size = (
            product.sum() if axis is None else product.movedim(axis, 0).flatten(1).sum(1)
            for product in (start * rounded, rounded.square())
        )
        self.register_buffer("unit", (fit / size).clamp(min=SMALLEST_SCALE * self.steps))

    def _levels(self, x: T) -> T:
        """Between -1 and 1, differentiable."""
        squeezed = torch.tanh(x)
        half = squeezed / (2 * squeezed.abs().amax().clamp(min=SMALLEST_SCALE)) + 0.5
        return 2 * straight_through(half * self.steps) / self.steps - 1

    @property
    def scale(self) -> T:
        """The step between a code and the next, shape [] or [C]."""
        return self.unit / self.steps

    def forward(self, x: T) -> T:
        """``x`` on the levels."""
        levels = self._levels(x)
        if self.keeps_variance and self.training:
            now = (levels.detach() * beside(self.unit, x, self.params)).var(correction=0)
            self.unit = self.unit * (self.variance / now.clamp(min=1e-20)).sqrt()
        return levels * beside(self.unit, x, self.params)

    def project(self) -> None:
        """Nothing learns here."""

    def freeze(self, x: T | None = None) -> tuple[T | None, QuantParams]:
        """The odd codes, and what they mean."""
        odd = np.arange(-self.steps, self.steps + 1, 2, dtype=np.int32)
        scale = as_scale(self.scale, self.params)
        grid = Codebook(self.params.spec, scale, self.params.zero_point, odd)
        if x is None:
            return None, grid
        return (self._levels(x).detach() * self.steps).round(), grid


def squeezed_weight(
    params: QuantParams, weight: T, keeps_variance: bool = False
) -> SqueezedWeight | FixedWeight:
    """The module of squeezed weights; of 8 bits no int8 holds the odd levels, so they stay even."""
    if params.spec.bits >= 8:
        return FixedWeight(params, False)
    return SqueezedWeight(params, weight, keeps_variance)
