"""STE: gradients pass a rounding as if it were the identity."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.qat import distributed
from qtool.qat.quantizers.base import (
    ActivationModule,
    GridBase,
    QatQuantizer,
    WeightBase,
    WeightModule,
    Widths,
)
from qtool.qat.quantizers.learned_step import StepGradient, learned_step
from qtool.qat.quantizers.scales import (
    broadcast_scale,
    code_limits,
    freeze_activation,
    freeze_weight,
)
from qtool.quant.primitives import SMALLEST_SCALE, QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class STE(QatQuantizer):
    """Straight-through rounding: dL/dx = dL/dy inside the range, 0 outside.

    y = round(clip(x / s, lo, hi)) * s, with scales s that do not learn.

    Args:
        ranges: ``fixed``: calibrated; ``ema``: activations follow a moving average of the batches'
            limits, weights their largest magnitude, as Jacob et al. train.
        momentum: weight of the newest batch in that average.
    Source: Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, sec. 3, arXiv:1712.05877.
    """

    _: KW_ONLY
    ranges: Literal["fixed", "ema"] = "fixed"
    momentum: float = Field(default=0.01, gt=0, le=1)

    @classmethod
    def unread(cls, options: Mapping[str, Any], widths: Widths) -> Mapping[str, str]:
        """Return ``momentum`` where no range is a moving average."""
        if "momentum" not in options or (options.get("ranges") == "ema" and widths.activations):
            return {}
        return {"momentum": "ranges: ema and integer activations"}

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        return STEWeight(params, follows_range=self.ranges == "ema")

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return STEActivation(params, self.momentum if self.ranges == "ema" else 0.0)


def straight_through(x: T) -> T:
    """Round half to even; the gradient is that of the identity.

    Source: Bengio et al. 2013, arXiv:1308.3432.
    """
    return x + (x.round() - x).detach()


class STEWeight(WeightBase):
    """Weights on a symmetric grid whose scale is fixed, or max |w| / qmax of the current weights.

    Attributes:
        scale: shape [] or [C].
    """

    refines = True
    scale: T

    def __init__(self, params: QuantParams, follows_range: bool) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            follows_range: compute the scale from the weights at every training step.
        """
        super().__init__(params)
        self.follows_range = follows_range
        self.register_buffer("scale", torch.tensor(params.scale, dtype=torch.float32))

    def forward(self, x: T) -> T:
        """Round weights to the grid."""
        spec = self.params.spec
        if self.follows_range and self.training:
            self.update_range(x)
        finer = self.steps_per_code
        step = broadcast_scale(self.scale, x, self.params) / finer
        return straight_through((x / step).clamp(finer * spec.qmin, finer * spec.qmax)) * step

    def update_range(self, weight: T) -> None:
        """Set the scale to max |weight| / qmax, per channel or tensor."""
        spec = self.params.spec
        axis = getattr(spec.granularity, "axis", None)
        size = weight.detach().abs()
        largest = size.amax() if axis is None else size.movedim(axis, 0).flatten(1).amax(1)
        self.scale = (largest / spec.qmax).clamp(min=SMALLEST_SCALE)

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the codes of ``weight``, as floats, and the grid."""
        return freeze_weight(weight, self.scale, self.params)


class STEActivation(GridBase):
    """Activations on a per-tensor grid that is fixed, or over a moving average of their limits.

    Attributes:
        scale: shape [1].
        zero: zero point, shape [1].
        limits: lowest and highest value that the grid covers, shape [2].
    """

    refines = True
    scale: T
    zero: T
    limits: T

    def __init__(self, params: QuantParams, momentum: float = 0.0) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            momentum: weight of the newest batch's limits in the average; 0: the grid is fixed.
        """
        super().__init__(params)
        self.momentum = momentum
        self.register_buffer("scale", torch.tensor(params.scale, dtype=torch.float32).reshape(1))
        self.register_buffer("zero", torch.tensor([float(params.zero_point)]))
        limits = torch.tensor([float(params.lo), float(params.hi)])
        self.register_buffer("limits", limits, persistent=momentum > 0)

    def forward(self, x: T) -> T:
        """Round activations to the grid; in training with a momentum, update the grid first."""
        spec = self.params.spec
        if self.momentum and self.training:
            limits = torch.stack(torch.aminmax(x.detach())).to(self.limits.dtype)
            limits = distributed.widest_limits(limits)
            self.limits = self.limits + self.momentum * (limits - self.limits)
            self._update_grid()
        gradient, finer = StepGradient(), self.steps_per_code
        if not self.momentum:
            return learned_step(x, self.scale, code_limits(self.params), gradient, finer=finer)
        return learned_step(x, self.scale, (spec.qmin, spec.qmax), gradient, self.zero, finer)

    def _update_grid(self) -> None:
        """Compute scale and zero point from the average limits; 0 stays on the grid."""
        spec = self.params.spec
        lo, hi = self.limits[0].clamp(max=0), self.limits[1].clamp(min=0)
        if spec.symmetric:
            self.scale = (torch.maximum(-lo, hi) / spec.qmax).clamp(min=SMALLEST_SCALE).reshape(1)
            return
        self.scale = ((hi - lo) / (spec.qmax - spec.qmin)).clamp(min=SMALLEST_SCALE).reshape(1)
        self.zero = (spec.qmin - lo / self.scale).round().clamp(spec.qmin, spec.qmax)

    def freeze(self) -> QuantParams:
        """Return the grid."""
        return freeze_activation(self.scale, self.zero, self.params)
