"""Integer arithmetic of requantization: multiply or shift, divide, round, without floats.

All tensors are int64, as wide as the products of 32-bit hardware.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qtool.quant.scale_formats import Multiplier

T = torch.Tensor

# Bits of the largest product: a sum below 2^31 times a 31-bit factor. Also the largest shift.
WIDEST = 62


def half_even(quotient: T, rest: T, whole: T) -> T:
    """Return 1 where ``rest / whole`` rounds up: past a half, or at it if the quotient is odd.

    Source: ONNX operator QuantizeLinear.
    """
    twice = 2 * rest
    return ((twice > whole) | ((twice == whole) & (quotient % 2 == 1))).to(torch.int64)


def half_away(quotient: T, rest: T, whole: T) -> T:
    """Return 1 where ``rest / whole`` rounds up: past a half, or at it for positive numbers.

    Source: gemmlowp, RoundingDivideByPOT.
    """
    twice = 2 * rest
    return ((twice > whole) | ((twice == whole) & (quotient >= 0))).to(torch.int64)


def half_up(quotient: T, rest: T, whole: T) -> T:
    """Return 1 where ``rest / whole`` rounds up: from a half on.

    Source: N2D2, ``(x + 2^(p - 1)) >> p``.
    """
    return (2 * rest >= whole).to(torch.int64)


ROUNDINGS: dict[str, Callable[[T, T, T], T]] = {
    "half_even": half_even,
    "half_away": half_away,
    "half_up": half_up,
}


def shift_right(x: T, shift: T, rounding: str) -> T:
    """Compute ``round(x * 2^-shift)``; negative shifts go left.

    Args:
        x: int64.
        shift: int64, broadcasts against ``x``.
        rounding: a name from ROUNDINGS.
    """
    left, right = (-shift).clamp(min=0), shift.clamp(min=0)
    x = x << left
    quotient = x >> right
    return quotient + ROUNDINGS[rounding](
        quotient, x - (quotient << right), torch.ones_like(x) << right
    )


def divide(x: T, by: T, rounding: str) -> T:
    """Compute ``round(x / by)``.

    Args:
        x: int64.
        by: int64, positive, broadcasts against ``x``.
        rounding: a name from ROUNDINGS.
    """
    quotient = torch.div(x, by, rounding_mode="floor")
    return quotient + ROUNDINGS[rounding](quotient, x - quotient * by, by)


@dataclass(frozen=True, eq=False)
class Rescale:
    """Multiplier as tensors that broadcast against the integers that they multiply.

    Attributes:
        form: ``product``, ``shift`` or ``double``.
        factor, shift: int64.
    """

    form: str
    factor: T
    shift: T

    def product(self, x: T) -> T:
        """Compute ``x`` times the multiplier before the right shift.

        ``x * factor`` (product), ``x`` (shift) or ``x + (x << factor)`` (double).
        """
        if self.form == "product":
            return x * self.factor
        return x if self.form == "shift" else x + (x << self.factor)

    def __call__(self, x: T, rounding: str) -> T:
        """Multiply ``x`` and round."""
        return shift_right(self.product(x), self.shift, rounding)


def rescale(multiplier: Multiplier) -> Rescale:
    """Convert a multiplier to tensors.

    A shift past WIDEST is applied to the factor beforehand: products that small lie below one step.
    """
    factor, shift = multiplier.factor, multiplier.shift
    if multiplier.form == "product":
        factor = factor >> np.maximum(shift - WIDEST, 0)
    tensors = (torch.from_numpy(np.array(a, np.int64)) for a in (factor, np.minimum(shift, WIDEST)))
    return Rescale(multiplier.form, *tensors)


def common(parts: Sequence[T], terms: Rescale) -> tuple[T, T]:
    """Add several products on one common shift; return (sum, shift), unrounded.

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
        raise AssertionError("found no terms, expected at least one")
    return total, shift
