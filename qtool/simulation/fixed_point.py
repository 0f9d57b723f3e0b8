"""Integer arithmetic of requantization: multiply or shift, divide, round. No float anywhere.

All tensors are int64 and hold what 32-bit hardware computes with 64-bit products.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qtool.quant.scale_formats import Multiplier

T = torch.Tensor

# Products of a sum below 2^31 and a 31-bit factor fit below this.
WIDEST = 62


def half_even(quotient: T, rest: T, whole: T) -> T:
    """1 where ``rest / whole`` rounds up: past a half, or at it behind an odd quotient (ONNX)."""
    twice = 2 * rest
    return ((twice > whole) | ((twice == whole) & (quotient % 2 == 1))).to(torch.int64)


def half_away(quotient: T, rest: T, whole: T) -> T:
    """1 where ``rest / whole`` rounds up: past a half, or at it for positive numbers (gemmlowp)."""
    twice = 2 * rest
    return ((twice > whole) | ((twice == whole) & (quotient >= 0))).to(torch.int64)


def half_up(quotient: T, rest: T, whole: T) -> T:
    """1 where ``rest / whole`` rounds up: from a half on (N2D2's ``(x + 2^(p - 1)) >> p``)."""
    return (2 * rest >= whole).to(torch.int64)


ROUNDINGS: dict[str, Callable[[T, T, T], T]] = {
    "half_even": half_even,
    "half_away": half_away,
    "half_up": half_up,
}


def shift_right(x: T, shift: T, rounding: str) -> T:
    """``x * 2^-shift`` rounded; negative shifts go left. ``shift`` broadcasts against ``x``."""
    left, right = (-shift).clamp(min=0), shift.clamp(min=0)
    x = x << left
    quotient = x >> right
    return quotient + ROUNDINGS[rounding](
        quotient, x - (quotient << right), torch.ones_like(x) << right
    )


def divide(x: T, by: T, rounding: str) -> T:
    """``x / by`` rounded; ``by`` is positive and broadcasts against ``x``."""
    quotient = torch.div(x, by, rounding_mode="floor")
    return quotient + ROUNDINGS[rounding](quotient, x - quotient * by, by)


@dataclass(frozen=True, eq=False)
class Rescale:
    """A Multiplier as tensors that broadcast against what they multiply.

    Attributes:
        form: ``product``, ``shift`` or ``double``.
        factor, shift: int64.
    """

    form: str
    factor: T
    shift: T

    def product(self, x: T) -> T:
        """What remains to be shifted right: ``x * factor``, ``x`` or ``x + (x << factor)``."""
        if self.form == "product":
            return x * self.factor
        return x if self.form == "shift" else x + (x << self.factor)

    def __call__(self, x: T, rounding: str) -> T:
        """``x`` times the number that this stands for, rounded."""
        return shift_right(self.product(x), self.shift, rounding)


def rescale(multiplier: Multiplier) -> Rescale:
    """The integers of a multiplier; a factor loses bits that only a shift past 62 would see."""
    factor, shift = multiplier.factor, multiplier.shift
    if multiplier.form == "product":
        factor = factor >> np.maximum(shift - WIDEST, 0)
    tensors = (torch.from_numpy(np.array(a, np.int64)) for a in (factor, np.minimum(shift, WIDEST)))
    return Rescale(multiplier.form, *tensors)


def common(parts: Sequence[T], terms: Rescale) -> tuple[T, T]:
    """The sum of several products with one shift: (sum, shift), unrounded.

    Args:
        parts: one integer tensor for each term.
        terms: their multipliers, along axis 0.
    """
    shift = terms.shift.max().clamp(min=0)
    total: T | None = None
    for k, x in enumerate(parts):
        one = Rescale(terms.form, terms.factor[k], terms.shift[k])
        product = one.product(x) << (shift - one.shift)
        total = product if total is None else total + product
    if total is None:
        raise AssertionError("a sum of nothing")
    return total, shift
