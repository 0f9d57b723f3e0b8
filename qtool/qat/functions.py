"""Rounding that gradients pass, on grids whose scale learns."""

import numpy as np
import torch

from qtool.numerics import SMALLEST_SCALE, PerChannel, QuantParams

T = torch.Tensor


def straight_through(x: T) -> T:
    """Rounded half to even; the gradient of the identity.

    Source: Bengio et al. 2013, arXiv:1308.3432.
    """
    return x + (x.round() - x).detach()


def scaled_gradient(x: T, factor: float | T) -> T:
    """The same numbers; the gradient times ``factor``."""
    return x * factor + (x - x * factor).detach()


def learned_step(x: T, scale: T, lo: int, hi: int, factor: float = 1.0) -> T:
    """``round(clip(x / s, lo, hi)) * s``, with the gradients of LSQ for x and s.

    With respect to s: round(x/s) - x/s inside, lo below, hi above. A composition of few operations:
    for weights, which are small; activations take torch's fused kernel.

    Args:
        x: any shape.
        scale: broadcasts against ``x``.
        lo, hi: the codes' limits, without zero point.
        factor: on the gradient of the scale.
    Source: Esser et al. 2020, "Learned Step Size Quantization", eq. 1-3, arXiv:1902.08153.
    """
    step = scaled_gradient(scale, factor)
    return straight_through((x / step).clamp(lo, hi)) * step


def beside(scale: T, x: T, params: QuantParams) -> T:
    """A scale of shape [] or [C] in a shape that broadcasts against the weights ``x``."""
    if not isinstance(params.spec.granularity, PerChannel):
        return scale
    shape = [1] * x.dim()
    shape[params.spec.granularity.axis] = -1
    return scale.reshape(shape)


def positive(scale: T) -> None:
    """Keep a learned scale away from zero: a change of sign would be a silent disaster."""
    with torch.no_grad():
        scale.clamp_(min=SMALLEST_SCALE)


def as_scale(scale: T, params: QuantParams) -> np.ndarray:
    """A learned scale as the plan stores it: float32, the shape of the grid's own."""
    return scale.detach().cpu().numpy().astype(np.float32).reshape(params.scale.shape)
