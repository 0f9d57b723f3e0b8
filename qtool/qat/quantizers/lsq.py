"""LSQ: the step size of every grid learns with the weights."""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import (
    ActivationModule,
    GridBase,
    QatQuantizer,
    WeightBase,
    WeightModule,
    Widths,
)
from qtool.qat.quantizers.learned_step import RoundedStep, StepGradient, learned_step
from qtool.qat.quantizers.scales import (
    MIN_SCALE_SHARE,
    broadcast_scale,
    clamp_below,
    code_limits,
    freeze_weight,
    plan_scale,
    raw_tensor,
)
from qtool.qat.quantizers.ste import STEWeight
from qtool.quant.primitives import PerChannel, QuantParams

T = torch.Tensor


class NarrowWeightQuantizer(QatQuantizer):
    """Base of methods for weights below 8 bits: at 8 bits the scale follows the weights' range.

    Activations learn as in lsq.
    """

    @classmethod
    def unread(cls, options: Mapping[str, Any], widths: Widths) -> Mapping[str, str]:
        """Return all options where no weights have less than 8 bits."""
        is_read = any(bits < 8 for bits in widths.weights)
        return {} if is_read else dict.fromkeys(options, "weights of less than 8 bits")

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        if params.spec.bits >= 8:
            return STEWeight(params, follows_range=True)
        return self.narrow_weight(params, weight)

    @abstractmethod
    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits.

        Args:
            params: calibrated grid, symmetric, one scale per tensor or per channel [C].
            weight: the weights that training starts from.
        """

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return LSQActivation(params, LSQGradient())


class LearnedStepQuantizer(QatQuantizer):
    """Base of methods whose options are about learned scales alone."""

    @classmethod
    def unread(cls, options: Mapping[str, Any], widths: Widths) -> Mapping[str, str]:
        """Return all options where no scale learns: that of 8-bit weights follows their range."""
        is_read = widths.activations or any(bits < 8 for bits in widths.weights)
        why = "weights of less than 8 bits or integer activations"
        return {} if is_read else dict.fromkeys(options, why)


@dataclass(frozen=True)
class LSQ(LearnedStepQuantizer):
    """Learned step size: dy/ds = round(x/s) - x/s inside, the limit's code outside.

    y = round(clip(x / s, lo, hi)) * s. The gradient of each scale s is multiplied by
    1 / sqrt(N * qmax), N being the number of weights, or of features of one sample, on the grid.
    Scales start from those of calibration. Weights of 8 bits are not learned this way: their scale
    is max |w| / qmax at every step.

    Args:
        gradient_scale: multiplies that factor.
    Source: Esser et al. 2020, "Learned Step Size Quantization", eq. 1-3 and sec. 2.2,
        arXiv:1902.08153. Departures: weights per channel count N per channel; scales start from the
        calibrated ones, not 2 mean|v| / sqrt(qmax); an asymmetric grid keeps its zero point.
    """

    _: KW_ONLY
    gradient_scale: float = Field(default=1.0, gt=0)

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        return lsq_weight(params, weight, LSQGradient(self.gradient_scale))

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return LSQActivation(params, LSQGradient(self.gradient_scale))


@dataclasses.dataclass(frozen=True)
class LSQGradient(StepGradient):
    """Gradient of the scale: round(x/s) - x/s inside, lo below, hi above.

    Source: Esser et al. 2020, eq. 3, arXiv:1902.08153.
    """

    def scale_gradient(self, dy: T, dx: T, rounded: RoundedStep) -> T:
        """Return sum(dy * code) outside the limits plus sum(dx * (code - x/s)) inside.

        Codes are counted from the zero point, if there is one.

        Args:
            dy: gradient of the output.
            dx: gradient of x, 0 where x is clipped.
            rounded: the forward pass.
        """
        steps, output, scale = rounded.steps, rounded.output, rounded.scale
        if rounded.is_wide:
            ds = rounded.scale_sum(dy - dx, output) / scale
            rest = steps.clamp(rounded.lo, rounded.hi).round_().sub_(steps)
            return ds + rounded.scale_sum(dx, rest)
        # sum(dy * code) - sum(dx * x/s): no mask, and one product less over the whole tensor.
        ds = rounded.scale_sum(dy, output) / scale
        ds -= rounded.scale_sum(dx, steps)
        if rounded.zero is not None:
            ds += rounded.zero * dx.sum_to_size(scale.shape)
        return ds


class LSQWeight(WeightBase):
    """Weights on a symmetric grid with learned scales.

    Attributes:
        scale: learned, shape [] or [C].
        floor: lowest value of the scale, same shape.
    """

    refines = True
    floor: T

    def __init__(self, params: QuantParams, weight: T, gradient: LSQGradient) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights; only their number counts.
            gradient: of the step; its factor is multiplied by 1 / sqrt(N * qmax).
        """
        super().__init__(params)
        self.scale = nn.Parameter(torch.tensor(params.scale, dtype=torch.float32))
        self.register_buffer("floor", self.scale.detach() * MIN_SCALE_SHARE, persistent=False)
        count = weight.numel()
        if isinstance(params.spec.granularity, PerChannel):
            count //= weight.shape[params.spec.granularity.axis]
        factor = gradient.factor / float(np.sqrt(count * params.spec.qmax))
        self.gradient = replace(gradient, factor=factor)
        self.scale_gradient_factor = factor

    def forward(self, x: T) -> T:
        """Round weights to the grid."""
        limits = (self.params.spec.qmin, self.params.spec.qmax)
        scale = broadcast_scale(self.scale, x, self.params)
        return learned_step(x, scale, limits, self.gradient, finer=self.steps_per_code)

    def project(self) -> None:
        """Clamp the scales to positive values."""
        clamp_below(raw_tensor(self, "scale"), self.floor)

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the codes of ``weight``, as floats, and the learned grid."""
        return freeze_weight(weight, self.scale, self.params)


class LSQActivation(GridBase):
    """Activations on a per-tensor grid with a learned scale and a fixed zero point.

    Attributes:
        scale: learned, shape [1].
        floor: lowest value of the scale, shape [1].
    """

    refines = True
    floor: T

    def __init__(self, params: QuantParams, gradient: LSQGradient) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            gradient: of the step; its factor is multiplied by 1 / sqrt(N * qmax).
        """
        super().__init__(params)
        self.gradient = gradient
        self.scale = nn.Parameter(torch.tensor(params.scale, dtype=torch.float32).reshape(1))
        self.register_buffer("floor", self.scale.detach() * MIN_SCALE_SHARE, persistent=False)

    def gradient_of(self, x: T) -> LSQGradient:
        """Return the gradient of a step on ``x`` [N, ...], whose factor counts its features."""
        features = x.numel() // max(x.shape[0], 1) if x.dim() else 1
        size = max(features, 1) * self.params.spec.qmax
        return replace(self.gradient, factor=self.gradient.factor / float(np.sqrt(size)))

    def forward(self, x: T) -> T:
        """Round activations to the grid."""
        limits, finer = code_limits(self.params), self.steps_per_code
        return learned_step(x, self.scale, limits, self.gradient_of(x), finer=finer)

    def project(self) -> None:
        """Clamp the scale to positive values."""
        clamp_below(raw_tensor(self, "scale"), self.floor)

    def freeze(self) -> QuantParams:
        """Return the learned grid."""
        return replace(self.params, scale=plan_scale(self.scale, self.params))


def lsq_weight(params: QuantParams, weight: T, gradient: LSQGradient) -> WeightModule:
    """Return the module of weights whose scale learns below 8 bits; at 8 it follows their range.

    Below 8 bits all codes are used, -2 to 1 at 2 bits: a third more levels than -1 to 1.

    Args:
        params: calibrated grid.
        weight: the weights that training starts from.
        gradient: of the step.
    """
    if params.spec.bits >= 8:
        return STEWeight(params, follows_range=True)
    params = replace(params, spec=replace(params.spec, narrow=False))
    return LSQWeight(params, weight, gradient)
