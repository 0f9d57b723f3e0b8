"""Grids that do not learn: straight-through rounding on fixed or moving ranges."""

import torch
from torch import nn

from qtool.qat import distributed
from qtool.qat.quantizers.functions import (
    beside,
    code_limits,
    frozen_activation,
    frozen_weight,
    learned_step,
    straight_through,
)
from qtool.quant.primitives import SMALLEST_SCALE, QuantParams

T = torch.Tensor


class FixedWeight(nn.Module):
    """Weights on a symmetric grid whose scale stays, or follows the weights' largest magnitude."""

    scale: T

    def __init__(self, params: QuantParams, follows: bool) -> None:
        """Make the module.

        Args:
            params: the grid that training starts from.
            follows: take the range of the weights anew at every step.
        """
        super().__init__()
        self.params, self.follows = params, follows
        self.register_buffer("scale", torch.tensor(params.scale, dtype=torch.float32))

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        spec = self.params.spec
        if self.follows and self.training:
            self.follow(x)
        step = beside(self.scale, x, self.params)
        return straight_through((x / step).clamp(spec.qmin, spec.qmax)) * step

    def follow(self, x: T) -> None:
        """Take the scale from the largest magnitude of ``x``."""
        spec = self.params.spec
        axis = getattr(spec.granularity, "axis", None)
        size = x.detach().abs()
        found = size.amax() if axis is None else size.movedim(axis, 0).flatten(1).amax(1)
        self.scale = (found / spec.qmax).clamp(min=SMALLEST_SCALE)

    def project(self) -> None:
        """Nothing learns here."""

    def freeze(self, x: T | None = None) -> tuple[T | None, QuantParams]:
        """The grid, and the codes of ``x``."""
        return frozen_weight(x, self.scale, self.params)


class FixedActivation(nn.Module):
    """Activations on a per-tensor grid that stays, or follows an average of the limits seen."""

    scale: T
    zero: T
    limits: T

    def __init__(self, params: QuantParams, momentum: float = 0.0) -> None:
        """Make the module.

        Args:
            params: the grid that training starts from.
            momentum: weight of the newest batch's limits in the average; 0: the grid stays.
        """
        super().__init__()
        self.params, self.momentum = params, momentum
        self.register_buffer("scale", torch.tensor(params.scale, dtype=torch.float32).reshape(1))
        self.register_buffer("zero", torch.tensor([float(params.zero_point)]))
        limits = torch.tensor([float(params.lo), float(params.hi)])
        self.register_buffer("limits", limits, persistent=momentum > 0)

    def forward(self, x: T) -> T:
        """``x`` on the grid."""
        spec = self.params.spec
        if self.momentum and self.training:
            seen = torch.stack(torch.aminmax(x.detach())).to(self.limits.dtype)
            seen = distributed.widest(seen)
            self.limits = self.limits + self.momentum * (seen - self.limits)
            self._follow()
        if not self.momentum:
            return learned_step(x, self.scale, *code_limits(self.params))
        return learned_step(x, self.scale, spec.qmin, spec.qmax, zero=self.zero)

    def _follow(self) -> None:
        """The grid over the average limits; zero stays exact."""
        spec = self.params.spec
        lo, hi = self.limits[0].clamp(max=0), self.limits[1].clamp(min=0)
        if spec.symmetric:
            self.scale = (torch.maximum(-lo, hi) / spec.qmax).clamp(min=SMALLEST_SCALE).reshape(1)
            return
        self.scale = ((hi - lo) / (spec.qmax - spec.qmin)).clamp(min=SMALLEST_SCALE).reshape(1)
        self.zero = (spec.qmin - lo / self.scale).round().clamp(spec.qmin, spec.qmax)

    def project(self) -> None:
        """Nothing learns here."""

    def freeze(self, x: T | None = None) -> tuple[None, QuantParams]:
        """The grid."""
        return None, frozen_activation(self.scale, self.zero, self.params)
