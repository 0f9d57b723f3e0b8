"""Scales for hardware without floats: 2^-k, 2^-m + 2^-n, and x * 2^-p.

Every rescaling of an integer network multiplies a sum by ``s_x * s_w / s_y``. This module computes
the forms of such a multiplier (``as_integers``), constrains grids to them, and implements N2D2's
rounding rule. Weights are rounded to codes *after* their scale was constrained, so the product of
codes and scales is exact; N2D2 gets the same by multiplying weights and bias by
``alpha / approximation``.

Source: N2D2, CEA-LIST, "Quantization methodologies" (post-training quantization, activation scaling
modes); Jacob et al. 2018, sec. 2.2, arXiv:1712.05877. Departure: N2D2 chooses by the precision of
the multiplier alone; of the neighbouring forms, which include N2D2's choice, we take the one with
the smallest squared error of the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qtool.quant.primitives import PerChannel, QuantParams, dequantize, quantize

Numbers = np.ndarray | np.float64

# N2D2 accepts a form that is smaller than the multiplier when it reaches this share of it.
N2D2_PRECISION = 0.98

# Largest difference of the two shifts of a double shift: the kernel shifts one term left by it.
MAX_SHIFT_GAP = 15

# Largest p of x * 2^-p.
MAX_SHIFT = 50


@dataclass(frozen=True, eq=False)
class Multiplier:
    """Real multipliers in the integers that a kernel multiplies and shifts by.

    Attributes:
        form: ``product``: factor * 2^-shift; ``shift``: 2^-shift; ``double``: (1 + 2^factor) *
            2^-shift.
        factor: int64, the numbers' shape; 0 throughout for ``shift``.
        shift: int64, the same shape; negative shifts go left.
    """

    form: str
    factor: np.ndarray
    shift: np.ndarray

    @property
    def value(self) -> np.ndarray:
        """The real multipliers, float64."""
        if self.form == "product":
            return np.ldexp(self.factor.astype(np.float64), -self.shift)
        second = np.ldexp(1.0, self.factor) if self.form == "double" else 0.0
        return np.ldexp(1.0 + second, -self.shift)


def width_of(kind: str) -> int:
    """Return the bits of x in ``fixed_point:<bits>``, sign included; 0 for the other kinds."""
    name, _, width = kind.partition(":")
    return int(width) if name == "fixed_point" else 0


def floor_log2(x: Numbers) -> np.ndarray:
    """Return the largest k with 2^k <= x, int64, exact."""
    return np.frexp(x)[1].astype(np.int64) - 1


def ceil_log2(x: Numbers) -> np.ndarray:
    """Return the smallest k with 2^k >= x, int64, exact."""
    mantissa, exponent = np.frexp(x)
    return exponent.astype(np.int64) - (mantissa == 0.5)


def double_shift(alpha: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Compute N2D2's m <= n of alpha ~ 2^-m + 2^-n.

    Greedy from below: 2^-m <= alpha, then 2^-n <= alpha - 2^-m. The second term is doubled where
    the sum stays below 0.98 alpha.

    Args:
        alpha: positive, any shape.

    Returns:
        m and n, int64, shape of alpha.
    """
    alpha = np.asarray(alpha, np.float64)
    m = -floor_log2(alpha)
    rest = alpha - np.ldexp(1.0, -m)
    # A remainder below the largest shift gap is dropped: the form is 2 * 2^-(m + 1).
    alone = rest < np.ldexp(1.0, -m - MAX_SHIFT_GAP)
    n = -floor_log2(np.where(alone, 1.0, rest))
    sum_ = np.ldexp(1.0, -m) + np.ldexp(1.0, -n)
    n = np.where(sum_ < N2D2_PRECISION * alpha, n - 1, n)
    return np.where(alone, m + 1, m), np.where(alone, m + 1, n)


def fixed_point(alpha: Numbers, width: int) -> tuple[np.ndarray, int]:
    """Compute integers x and one shift p with alpha ~ x * 2^-p; the largest alpha determines p.

    Args:
        alpha: positive, any shape.
        width: bits of x, sign included: x < 2^(width - 1) - 1.

    Returns:
        x, int64, at least 1, and p, at most 50. The relative error of the largest alpha is at most
        2^-(width - 1); that of an alpha 2^-j times as large is at most 2^j times that.
    """
    alpha = np.asarray(alpha, np.float64)
    largest, limit = float(alpha.max()), 2 ** (width - 1) - 1
    p = min(width - 1 - int(floor_log2(np.float64(largest))), MAX_SHIFT)
    while np.rint(np.ldexp(largest, p)) >= limit:
        p -= 1
    return np.maximum(np.rint(np.ldexp(alpha, p)), 1).astype(np.int64), p


def normalized(alpha: Numbers, bits: int = 31) -> tuple[np.ndarray, np.ndarray]:
    """Compute Jacob's multiplier and shift: alpha ~ q * 2^-shift, q of exactly ``bits`` bits.

    0.00724724... gives q = 1992157658 and a shift of 31 + 7.

    Args:
        alpha: positive, any shape.
        bits: bits of q.

    Returns:
        q and shift, int64, shape of alpha.
    """
    mantissa, exponent = np.frexp(np.asarray(alpha, np.float64))
    q = np.rint(np.ldexp(mantissa, bits)).astype(np.int64)
    full = q == 2**bits
    return np.where(full, q >> 1, q), bits - exponent.astype(np.int64) - full


def as_integers(alpha: Numbers, kind: str, *, together: bool = False) -> Multiplier:
    """Compute the integer multiplier that a kernel uses for ``alpha``.

    Args:
        alpha: positive, float64, any shape.
        kind: a grid's ``scale_kind``. Under ``power_of_two`` and ``double_shift`` alpha has that
            form already, exactly; ``fixed_point:<bits>`` and ``float`` (31 bits) round to nearest.
        together: True for one common shift (terms of a sum); ``float`` then rounds all of them to
            2^-31 of the largest.

    Raises:
        ValueError: alpha does not have the form of ``power_of_two`` or ``double_shift``.
    """
    alpha = np.asarray(alpha, np.float64)
    if kind == "float" and not together:
        return Multiplier("product", *normalized(alpha))
    if kind == "float" or width_of(kind):
        x, p = fixed_point(alpha, width_of(kind) or 32)
        return Multiplier("product", x, np.full(alpha.shape, p, np.int64))
    low = -floor_log2(alpha)
    rest = alpha - np.ldexp(1.0, -low)
    if not rest.any():
        return Multiplier("shift", np.zeros_like(low), low)
    alone = rest == 0
    high = -floor_log2(np.where(alone, 1.0, rest))
    low, high = np.where(alone, low + 1, low), np.where(alone, low + 1, high)
    if kind != "double_shift" or np.any(np.ldexp(1.0, -low) + np.ldexp(1.0, -high) != alpha):
        raise ValueError(f"the multipliers {alpha} do not have the form {kind}")
    return Multiplier("double", high - low, high)


def neighbours(alpha: Numbers, kind: str) -> tuple[np.ndarray, ...]:
    """Return the numbers of a form just below and just above alpha, and N2D2's choice.

    Args:
        alpha: positive, any shape.
        kind: ``power_of_two``, ``double_shift`` or ``fixed_point:<bits>``.

    Returns:
        Two or three float64 arrays, shape of alpha.
    """
    alpha = np.asarray(alpha, np.float64)
    if kind == "power_of_two":
        return np.ldexp(1.0, floor_log2(alpha)), np.ldexp(1.0, ceil_log2(alpha))
    if kind == "double_shift":
        first = floor_log2(alpha)
        unit = np.ldexp(1.0, first)
        rest = alpha / unit - 1
        least = np.ldexp(1.0, -MAX_SHIFT_GAP)
        below = np.where(rest < least, 0.0, np.ldexp(1.0, floor_log2(np.maximum(rest, least))))
        above = np.where(rest > 0, np.ldexp(1.0, ceil_log2(np.maximum(rest, least))), 0.0)
        m, n = double_shift(alpha)
        rule = np.ldexp(1.0, -m) + np.ldexp(1.0, -n)
        return unit * (1 + below), unit * (1 + above), rule
    _, p = fixed_point(alpha, width_of(kind))
    exact = np.ldexp(alpha, p)
    limit = 2 ** (width_of(kind) - 1) - 2
    low, high = (np.clip(f(exact), 1, limit) for f in (np.floor, np.ceil))
    return np.ldexp(low, -p), np.ldexp(high, -p)


def constrain_weight_scale(
    weight: np.ndarray, params: QuantParams, ratio: float | None
) -> QuantParams:
    """Constrain the scales of a weight's grid to the form in its spec.

    Of the neighbouring scales, each channel takes the one with the smallest squared error of its
    weights. N2D2's choice is among them, so the error is at most that of N2D2's rule.

    Args:
        weight: float, any shape.
        params: its grid; ``spec.scale_kind`` is the form.
        ratio: s_x / s_y of the layer, for ``fixed_point``; None where the layer writes floats, and
            its scales stay as they are.

    Returns:
        The grid with constrained scales.
    """
    kind = params.spec.scale_kind
    if kind == "float" or (width_of(kind) and ratio is None):
        return params
    factor = ratio if width_of(kind) and ratio is not None else 1.0
    best, error = params, np.full(params.scale.shape, np.inf)
    for candidate in neighbours(params.scale * np.float64(factor), kind):
        trial = _rescaled(params, (candidate / factor).astype(np.float32))
        loss = _squared_error(weight, trial)
        best = replace(
            best,
            scale=np.where(loss < error, trial.scale, best.scale),
            zero_point=np.where(loss < error, trial.zero_point, best.zero_point),
        )
        error = np.minimum(loss, error)
    return best


def _rescaled(params: QuantParams, scale: np.ndarray) -> QuantParams:
    """Return the grid with another scale; an asymmetric grid keeps its lowest value."""
    spec, zero = params.spec, params.zero_point
    if not spec.symmetric:
        shifted = np.rint(spec.qmin - params.lo / scale)
        zero = np.clip(shifted, spec.qmin, spec.qmax).astype(np.int32)
    return replace(params, scale=scale, zero_point=zero)


def _squared_error(weight: np.ndarray, params: QuantParams) -> np.ndarray:
    """Compute the sum of squared errors for each scale, shape of the scale."""
    wide = weight.astype(np.float64)
    errors = np.square(dequantize(quantize(wide, params), params) - wide)
    granularity = params.spec.granularity
    if isinstance(granularity, PerChannel):
        return np.moveaxis(errors, granularity.axis, 0).reshape(len(params.scale), -1).sum(1)
    return np.asarray(errors.sum())


def constrain_activation_scale(
    params: QuantParams, error: Callable[[QuantParams], np.ndarray | float] | None
) -> QuantParams:
    """Constrain the scale of an activation's grid to a power of two.

    Candidates are the powers around the calibrated scale, each with zero points from one end of the
    range to the other; the scale rounded up is among them.

    Args:
        params: the calibrated grid, per tensor.
        error: returns the error of a grid; None when only the range is available: the scale is then
            rounded up, which clips no value.

    Returns:
        The candidate with the smallest error.
    """
    scale = params.scale.astype(np.float64)
    up = int(ceil_log2(scale))
    candidates = _power_of_two_grids(params, (up,) if error is None else (up, up - 1, up - 2))
    return min(candidates, key=error) if error is not None else candidates[0]


def _power_of_two_grids(params: QuantParams, exponents: Sequence[int]) -> list[QuantParams]:
    """Return the grids of scale 2^exponent, with up to 17 zero points each.

    The zero points go from the one that covers the lower limit to the one that covers the upper.
    """
    spec, grids = params.spec, []
    for exponent in exponents:
        scale = np.float32(2.0**exponent)
        limits = [spec.qmin - float(params.lo) / scale, spec.qmax - float(params.hi) / scale]
        low, high = (int(np.clip(np.rint(limit), spec.qmin, spec.qmax)) for limit in limits)
        step = max(abs(high - low) // 16, 1) * (1 if high >= low else -1)
        zeros = [int(params.zero_point)] if spec.symmetric else [*range(low, high, step), high]
        for zero in zeros:
            grids.append(QuantParams(spec, np.asarray(scale), np.asarray(zero, np.int32)))
    return grids
