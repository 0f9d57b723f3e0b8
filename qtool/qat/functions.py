"""Rounding that gradients pass, on grids whose scale learns."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from qtool.numerics import PerChannel, QuantParams

T = torch.Tensor


def straight_through(x: T) -> T:
    """Rounded half to even; the gradient of the identity.

    Source: Bengio et al. 2013, arXiv:1308.3432.
    """
    return x + (x.round() - x).detach()


class _ScaledRound(torch.autograd.Function):
    """Rounds; the gradient grows where it points away from the rounded value."""

    @staticmethod
    def forward(ctx: Any, x: T, delta: float) -> T:
        rounded = x.round()
        ctx.save_for_backward(x - rounded)
        ctx.delta = delta
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: T) -> tuple[T, None]:
        (rest,) = ctx.saved_tensors
        g = gradients[0]
        return g * (1 + ctx.delta * g.sign() * rest), None


def scaled_round(x: T, delta: float) -> T:
    """Rounded half to even; a gradient g becomes ``g * (1 + delta * sign(g) * (x - round(x)))``.

    Source: Lee, Kim and Ham 2021, eq. 5, arXiv:2104.00903.
    """
    found: T = _ScaledRound.apply(x, delta)
    return found


def scaled_gradient(x: T, factor: float | T) -> T:
    """The same numbers; the gradient times ``factor``."""
    return x * factor + (x - x * factor).detach()


def learned_step(x: T, scale: T, lo: int, hi: int, factor: float = 1.0, delta: float = 0.0) -> T:
    """``round(clip(x / s, lo, hi)) * s``, with the gradients of LSQ for x and s.

    With respect to s: round(x/s) - x/s inside, lo below, hi above. A composition of few operations:
    for weights, which are small; activations take torch's fused kernel.

    Args:
        x: any shape.
        scale: broadcasts against ``x``.
        lo, hi: the codes' limits, without zero point.
        factor: on the gradient of the scale.
        delta: of :func:`scaled_round`, on x counted so that the grid is 1 (or -1 to 1) wide.
    Source: Esser et al. 2020, "Learned Step Size Quantization", eq. 1-3, arXiv:1902.08153.
    """
    step = scaled_gradient(scale, factor)
    steps = (x / step).clamp(lo, hi)
    if not delta:
        return straight_through(steps) * step
    return scaled_round(steps, delta / max(hi, -lo)) * step


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
    with torch.no_grad():
        codes = (x / beside(scale, x, params)).clamp(grid.spec.qmin, grid.spec.qmax)
        return codes.round(), grid
