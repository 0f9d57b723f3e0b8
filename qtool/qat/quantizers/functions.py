"""Rounding that gradients pass, on grids whose scale learns."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from qtool.quant.primitives import PerChannel, QuantParams

T = torch.Tensor

# On grids with more steps the two sums of a scale's gradient are so large beside their difference
# that float32 does not hold it.
WIDE = 255


def widened(value: Any, tensor: T) -> T:
    """An observer for executors: what torch.autocast computed in bfloat16, as float32.

    Grids, BatchNorm and operators that autocast leaves alone then see float32 alone.
    """
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def straight_through(x: T) -> T:
    """Rounded half to even; the gradient of the identity.

    Source: Bengio et al. 2013, arXiv:1308.3432.
    """
    return x + (x.round() - x).detach()


class _LearnedStep(torch.autograd.Function):
    """Rounding to a grid in few passes over memory, which is all that such a step costs."""

    @staticmethod
    def forward(
        ctx: Any, x: T, scale: T, zero: T | None, limits: tuple[int, int], rule: "StepRule"
    ) -> T:
        steps = x / scale
        whole = None if zero is None else zero.detach().round()
        if whole is not None:
            steps += whole
        y = steps.clamp(*limits).round_()
        if whole is not None:
            y -= whole
        y *= scale
        ctx.save_for_backward(steps, y, scale, whole)
        ctx.limits, ctx.rule = limits, rule
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: T) -> tuple[T, T | None, T | None, None, None]:
        steps, y, scale, whole = ctx.saved_tensors
        (lo, hi), rule = ctx.limits, ctx.rule
        g = dy
        if rule.delta:
            codes = y / scale if whole is None else y / scale + whole
            rest = steps.clamp(lo, hi) - codes
            g = dy * (1 + (rule.delta / max(hi, -lo)) * dy.sign() * rest)
        # Nothing passes at the limits or beyond.
        dx = torch.ops.aten.hardtanh_backward(g, steps, lo, hi)
        ds = dz = None
        if ctx.needs_input_grad[1] and hi - lo > WIDE:
            ds = _summed(dy - dx, y, scale) / scale
            if not rule.clips_alone:
                ds = ds + _summed(dx, steps.clamp(lo, hi).round_().sub_(steps), scale)
            ds = ds * rule.factor
        elif ctx.needs_input_grad[1]:
            # dy * code outside and dy * (code - x/s) inside, without a mask.
            ds = _summed(dy, y, scale) / scale
            ds -= _summed(dx, y, scale) / scale if rule.clips_alone else _summed(dx, steps, scale)
            if whole is not None and not rule.clips_alone:
                ds += whole * dx.sum_to_size(scale.shape)
            ds = ds * rule.factor
        if whole is not None and ctx.needs_input_grad[2]:
            dz = (dx.sum() - dy.sum()).reshape(whole.shape) * scale.reshape(whole.shape)
            dz = dz * rule.factor
        return dx, ds, dz, None, None


def _summed(a: T, b: T, scale: T) -> T:
    """Sum of products over what one scale serves, in the scale's shape."""
    if scale.numel() == 1 and a.shape == b.shape and _same_order(a, b):
        return torch.dot(_flat(a), _flat(b)).reshape(scale.shape)
    return (a * b).sum_to_size(scale.shape)


def _same_order(a: T, b: T) -> bool:
    return a.stride() == b.stride() and (
        a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    )


def _flat(x: T) -> T:
    """All numbers in the order they lie in memory, without a copy."""
    return x.as_strided((x.numel(),), (1,))


@dataclass(frozen=True)
class StepRule:
    """What gradients a step gives.

    Attributes:
        factor: on the gradients of scale and zero point.
        delta: of EWGS; 0: none. A gradient g of x becomes g * (1 + delta * sign(g) * (x - q)), x
            counted so that the grid is 1 (or -1 to 1) wide.
        clips_alone: the scale learns from what is clipped alone (PACT).
    """

    factor: float = 1.0
    delta: float = 0.0
    clips_alone: bool = False


def learned_step(
    x: T, scale: T, lo: int, hi: int, rule: StepRule = StepRule(), zero: T | None = None
) -> T:
    """``round(clip(x / s, lo, hi)) * s``, with the gradients of LSQ for x and s.

    With respect to s: round(x/s) - x/s inside, lo below, hi above. With a learned zero point z,
    ``(round(clip(x / s + round(z), lo, hi)) - round(z)) * s``; with respect to z: -s outside.

    Args:
        x: any shape.
        scale: broadcasts against ``x``.
        lo, hi: the codes' limits; without zero point where it does not learn.
        rule: changes to the gradients.
        zero: shape [1].
    Source: Esser et al. 2020, "Learned Step Size Quantization", eq. 1-3, arXiv:1902.08153; of z:
        Nagel et al. 2021, sec. 4.1, arXiv:2106.08295; delta: Lee, Kim and Ham 2021, eq. 5,
        arXiv:2104.00903.
    """
    found: T = _LearnedStep.apply(x, scale, zero, (lo, hi), rule)
    return found


def code_limits(params: QuantParams) -> tuple[int, int]:
    """Lowest and highest code of a per-tensor grid, counted from the zero point."""
    zero = int(params.zero_point)
    return params.spec.qmin - zero, params.spec.qmax - zero


def beside(scale: Any, x: Any, params: QuantParams) -> Any:
    """A scale of shape [] or [C] in a shape that broadcasts against weights: tensors or arrays."""
    if not isinstance(params.spec.granularity, PerChannel):
        return scale
    shape = [1] * x.ndim
    shape[params.spec.granularity.axis] = -1
    return scale.reshape(shape)


# A learned scale stays above this share of the one it started from: a change of sign would be a
# silent disaster.
FLOOR = 1 / 64


def keep_above(scale: T, floor: T) -> None:
    """Raise what fell below ``floor``, in place and without gradient."""
    with torch.no_grad():
        scale.copy_(torch.maximum(scale, floor))


def as_scale(scale: T, params: QuantParams) -> np.ndarray:
    """A learned scale as the plan stores it: float32, the shape of the grid's own."""
    return scale.detach().cpu().numpy().astype(np.float32).reshape(params.scale.shape)


def frozen_weight(x: T | None, scale: T, params: QuantParams) -> tuple[T | None, QuantParams]:
    """The grid with the learned scale and, for weights ``x``, their nearest codes."""
    grid = replace(params, scale=as_scale(scale, params))
    if x is None:
        return None, grid
    return nearest_codes(x, scale, params), grid


@torch.no_grad()
def nearest_codes(x: T, scale: T, params: QuantParams) -> T:
    """Codes of weights on a symmetric grid of this scale, as floats."""
    spec = params.spec
    return (x / beside(scale, x, params)).clamp_(spec.qmin, spec.qmax).round_()


def frozen_activation(scale: T, zero: T, params: QuantParams) -> QuantParams:
    """The grid with what was learned; the zero point, a real number in training, rounded."""
    whole = zero.detach().cpu().numpy().round().astype(np.int32)
    whole = whole.reshape(params.zero_point.shape)
    return replace(params, scale=as_scale(scale, params), zero_point=whole)
