"""Rounding to a grid as one autograd function; the paper's file gives the gradients.

The forward pass is the same for LSQ, LSQ+, EWGS, PACT, SAT and STE: round(clip(x / s, lo, hi)) * s.
They differ in the gradients of x, scale and zero point, which a :class:`StepGradient` computes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

T = torch.Tensor

# On grids with more steps the two sums of a scale's gradient are so large beside their difference
# that float32 does not hold it.
WIDE = 255


@dataclass(frozen=True)
class RoundedStep:
    """Tensors of a forward pass that its gradients are computed from.

    Attributes:
        steps: x / s (+ round(z) with a zero point), before clipping; shape of x.
        output: the rounded x, shape of x.
        scale: s, broadcasts against x.
        zero: round(z), shape [1], or None without a zero point of its own.
        lo, hi: lowest and highest code.
    """

    steps: T
    output: T
    scale: T
    zero: T | None
    lo: int
    hi: int

    @property
    def is_wide(self) -> bool:
        """More steps than float32 sums of codes can resolve."""
        return self.hi - self.lo > WIDE

    def codes(self) -> T:
        """Return the codes that x was rounded to."""
        codes = self.output / self.scale
        return codes if self.zero is None else codes + self.zero

    def scale_sum(self, a: T, b: T) -> T:
        """Return the sum of a * b over the elements that share a scale, in the scale's shape."""
        if self.scale.numel() == 1 and a.shape == b.shape and _same_order(a, b):
            return torch.dot(_flat(a), _flat(b)).reshape(self.scale.shape)
        return (a * b).sum_to_size(self.scale.shape)


def _same_order(a: T, b: T) -> bool:
    return a.stride() == b.stride() and (
        a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    )


def _flat(x: T) -> T:
    """Return all elements in the order of memory, without a copy."""
    return x.as_strided((x.numel(),), (1,))


@dataclass(frozen=True)
class StepGradient:
    """Straight-through gradient of x; none of scale and zero point.

    dL/dx = dL/dy inside the limits, 0 at the limits and beyond. Subclasses change ``dL/dy`` before
    that, and add the gradients of scale and zero point.

    Attributes:
        factor: on the gradients of scale and zero point.
    """

    factor: float = 1.0

    def output_gradient(self, dy: T, rounded: RoundedStep) -> T:
        """Return the gradient that is passed on to x inside the limits, shape of x.

        Args:
            dy: gradient of the output.
            rounded: the forward pass.
        """
        return dy

    def scale_gradient(self, dy: T, dx: T, rounded: RoundedStep) -> T:
        """Return the gradient of the scale before ``factor``, in the scale's shape.

        Args:
            dy: gradient of the output.
            dx: gradient of x, 0 where x is clipped.
            rounded: the forward pass.
        """
        return torch.zeros_like(rounded.scale)

    def zero_gradient(self, dy: T, dx: T, rounded: RoundedStep) -> T:
        """Return the gradient of the zero point before ``factor``, in the scale's shape.

        Args:
            dy: gradient of the output.
            dx: gradient of x, 0 where x is clipped.
            rounded: the forward pass.
        """
        return torch.zeros_like(rounded.scale)


class _LearnedStep(torch.autograd.Function):
    """Rounding in few passes over memory, which take most of the time of such a step."""

    @staticmethod
    def forward(
        ctx: Any, x: T, scale: T, zero: T | None, limits: tuple[int, int], gradient: StepGradient
    ) -> T:
        steps = x / scale
        rounded_zero = None if zero is None else zero.detach().round()
        if rounded_zero is not None:
            steps += rounded_zero
        y = steps.clamp(*limits).round_()
        if rounded_zero is not None:
            y -= rounded_zero
        y *= scale
        ctx.save_for_backward(steps, y, scale, rounded_zero)
        ctx.limits, ctx.gradient = limits, gradient
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: T) -> tuple[T, T | None, T | None, None, None]:
        steps, y, scale, zero = ctx.saved_tensors
        (lo, hi), gradient = ctx.limits, ctx.gradient
        rounded = RoundedStep(steps, y, scale, zero, lo, hi)
        # hardtanh passes nothing at the limits, as LSQ's strict -Q_N < x / s < Q_P.
        passed = gradient.output_gradient(dy, rounded)
        dx = torch.ops.aten.hardtanh_backward(passed, steps, lo, hi)
        ds = dz = None
        if ctx.needs_input_grad[1]:
            ds = gradient.scale_gradient(dy, dx, rounded) * gradient.factor
        if zero is not None and ctx.needs_input_grad[2]:
            dz = gradient.zero_gradient(dy, dx, rounded).reshape(zero.shape) * gradient.factor
        return dx, ds, dz, None, None


def learned_step(
    x: T,
    scale: T,
    limits: tuple[int, int],
    gradient: StepGradient,
    zero: T | None = None,
    finer: int = 1,
) -> T:
    """Return round(clip(x / s, lo, hi)) * s, with the gradients that ``gradient`` computes.

    With a zero point z: (round(clip(x / s + round(z), lo, hi)) - round(z)) * s.

    Args:
        x: any shape.
        scale: s, broadcasts against ``x``.
        limits: lowest and highest code; counted from the zero point where ``zero`` is None.
        gradient: of x, scale and zero point.
        zero: z, a real number, shape [1]; None: the grid has none, or ``limits`` contain it.
        finer: divide every step into so many, over the same range.
    """
    if finer > 1:
        scale, limits = scale / finer, (finer * limits[0], finer * limits[1])
        zero = None if zero is None else finer * (zero + (zero.round() - zero).detach())
    y: T = _LearnedStep.apply(x, scale, zero, limits, gradient)
    return y
