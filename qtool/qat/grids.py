"""Modules that stand for one grid while training."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from qtool.numerics import PerChannel, QuantParams
from qtool.qat.fixed import FixedWeight
from qtool.qat.functions import FLOOR, as_scale, beside, frozen_weight, keep_above, learned_step

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
        self.params, self.delta = params, delta
        self.scale = nn.Parameter(torch.tensor(params.scale, dtype=torch.float32))
        self.register_buffer("floor", self.scale.detach() * FLOOR, persistent=False)
        per = weight.numel()
        if isinstance(params.spec.granularity, PerChannel):
            per //= weight.shape[params.spec.granularity.axis]
        self.factor = gradient_scale / float(np.sqrt(per * params.spec.qmax))

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        spec = self.params.spec
        return learned_step(
            x, beside(self.scale, x, self.params), spec.qmin, spec.qmax, self.factor, self.delta
        )

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
        self, params: QuantParams, gradient_scale: float, learns_zero: bool = False
    ) -> None:
        super().__init__()
        self.params = params
        self.scale = nn.Parameter(torch.tensor(params.scale, dtype=torch.float32).reshape(1))
        self.register_buffer("floor", self.scale.detach() * FLOOR, persistent=False)
        zero = torch.tensor([float(params.zero_point)])
        if learns_zero and not params.spec.symmetric:
            self.zero = nn.Parameter(zero)
        else:
            self.register_buffer("zero", zero, persistent=False)
        self.gradient_scale = gradient_scale

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        spec = self.params.spec
        factor = gradient_factor(x, spec.qmax, self.gradient_scale)
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.scale, self.zero, spec.qmin, spec.qmax, factor
        )

    def project(self) -> None:
        """The scale stays positive, the zero point among the codes."""
        keep_above(self.scale, self.floor)
        with torch.no_grad():
            self.zero.clamp_(self.params.spec.qmin, self.params.spec.qmax)

    def freeze(self, x: T | None = None) -> tuple[None, QuantParams]:
        """The grid."""
        zero = self.zero.detach().cpu().numpy().round().astype(np.int32)
        return None, replace(
            self.params,
            scale=as_scale(self.scale, self.params),
            zero_point=zero.reshape(self.params.zero_point.shape),
        )


class ScaledGradientActivation(LearnedScaleActivation):
    """The same with gradients scaled element by element; the zero point stays."""

    def __init__(self, params: QuantParams, gradient_scale: float, delta: float) -> None:
        super().__init__(params, gradient_scale)
        self.delta = delta

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        spec, zero = self.params.spec, int(self.params.zero_point)
        factor = gradient_factor(x, spec.qmax, self.gradient_scale)
        lo, hi = spec.qmin - zero, spec.qmax - zero
        return learned_step(x, self.scale, lo, hi, factor, self.delta)


def learned_weight(
    params: QuantParams, weight: T, gradient_scale: float, delta: float = 0.0
) -> Quantizer:
    """The module of weights whose scale learns below 8 bits; those of 8 follow their range."""
    if params.spec.bits >= 8:
        return FixedWeight(params, follows=True)
    return LearnedScaleWeight(params, weight, gradient_scale, delta)


def gradient_factor(x: T, qmax: int, scale: float) -> float:
    """LSQ's factor on the gradient of an activation's scale, by the features of one sample."""
    features = x.numel() // max(x.shape[0], 1) if x.dim() else 1
    return scale / float(np.sqrt(max(features, 1) * qmax))
