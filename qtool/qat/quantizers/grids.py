"""Modules that stand for one grid while training."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from qtool.qat.quantizers.fixed import FixedWeight
from qtool.qat.quantizers.functions import (
    FLOOR,
    StepRule,
    beside,
    code_limits,
    frozen_activation,
    frozen_weight,
    keep_above,
    learned_step,
)
from qtool.quant.primitives import PerChannel, QuantParams

T = torch.Tensor


class Quantizer(Protocol):
    """What a module that stands for one grid offers beside ``forward(x)``.

    Attributes:
        scale: the scale as it is now: shape [] or [C] of weights, [1] of activations.
    """

    @property
    def scale(self) -> T:
        """See above."""

    def __call__(self, x: T) -> T:
        """``x`` on the grid, differentiable: straight-through or better."""

    def project(self) -> None:
        """Called after every optimizer step: bring parameters back to where they make sense."""

    def freeze(self, x: T | None = None) -> tuple[T | None, QuantParams]:
        """The grid learned and, for weights ``x``, the codes that calling rounds them to."""


class LearnedScaleWeight(nn.Module):
    """Weights on a symmetric grid with learned scales, shape [] or [C]."""

    floor: T

    def __init__(
        self, params: QuantParams, weight: T, gradient_scale: float, delta: float = 0.0
    ) -> None:
        super().__init__()
        self.params = params
        self.scale = nn.Parameter(torch.tensor(params.scale, dtype=torch.float32))
        self.register_buffer("floor", self.scale.detach() * FLOOR, persistent=False)
        per = weight.numel()
        if isinstance(params.spec.granularity, PerChannel):
            per //= weight.shape[params.spec.granularity.axis]
        self.rule = StepRule(gradient_scale / float(np.sqrt(per * params.spec.qmax)), delta)

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        spec = self.params.spec
        scale = beside(self.scale, x, self.params)
        return learned_step(x, scale, spec.qmin, spec.qmax, self.rule)

    def project(self) -> None:
        """Scales stay positive."""
        keep_above(self.scale, self.floor)

    def freeze(self, x: T | None = None) -> tuple[T | None, QuantParams]:
        """The grid, and the codes of ``x``."""
        return frozen_weight(x, self.scale, self.params)


class LearnedScaleActivation(nn.Module):
    """Activations on a per-tensor grid with a learned scale, and a zero point that may learn."""

    floor: T
    zero: T

    def __init__(
        self,
        params: QuantParams,
        gradient_scale: float,
        learns_zero: bool = False,
        delta: float = 0.0,
    ) -> None:
        super().__init__()
        self.params, self.delta = params, delta
        self.scale = nn.Parameter(torch.tensor(params.scale, dtype=torch.float32).reshape(1))
        self.register_buffer("floor", self.scale.detach() * FLOOR, persistent=False)
        zero = torch.tensor([float(params.zero_point)])
        self.learns_zero = learns_zero and not params.spec.symmetric
        if self.learns_zero:
            self.zero = nn.Parameter(zero)
        else:
            self.register_buffer("zero", zero, persistent=False)
        self.gradient_scale = gradient_scale

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        spec = self.params.spec
        rule = StepRule(gradient_factor(x, spec.qmax, self.gradient_scale), self.delta)
        if self.learns_zero:
            return learned_step(x, self.scale, spec.qmin, spec.qmax, rule, self.zero)
        return learned_step(x, self.scale, *code_limits(self.params), rule)

    def project(self) -> None:
        """The scale stays positive, the zero point among the codes."""
        keep_above(self.scale, self.floor)
        with torch.no_grad():
            self.zero.clamp_(self.params.spec.qmin, self.params.spec.qmax)

    def freeze(self, x: T | None = None) -> tuple[None, QuantParams]:
        """The grid."""
        return None, frozen_activation(self.scale, self.zero, self.params)


def learned_weight(
    params: QuantParams, weight: T, gradient_scale: float, delta: float = 0.0
) -> Quantizer:
    """The module of weights whose scale learns below 8 bits; those of 8 follow their range.

    Below 8 bits all codes are used, -2 to 1 at 2 bits: a third more levels than -1 to 1.
    """
    if params.spec.bits >= 8:
        return FixedWeight(params, follows=True)
    params = replace(params, spec=replace(params.spec, narrow=False))
    return LearnedScaleWeight(params, weight, gradient_scale, delta)


def gradient_factor(x: T, qmax: int, scale: float) -> float:
    """LSQ's factor on the gradient of an activation's scale, by the features of one sample."""
    features = x.numel() // max(x.shape[0], 1) if x.dim() else 1
    return scale / float(np.sqrt(max(features, 1) * qmax))
