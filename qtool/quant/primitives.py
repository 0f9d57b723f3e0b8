"""Quantization specs and parameters, and quantize, dequantize and fake_quantize.

The convention is that of ONNX QuantizeLinear and DequantizeLinear:

    q = clip(round_half_even(x / scale) + zero_point, qmin, qmax)
    x ~ (q - zero_point) * scale

No other module rounds values to codes. The functions use only methods that numpy arrays and torch
tensors share, so they accept both, and this module need not import torch.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", sec. 2.1, arXiv:1712.05877; ONNX operator QuantizeLinear.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # a numpy array or a torch tensor; results have the type of the input


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor; scale shape []."""

    name = "tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along ``axis``; W [A, B] with axis 0 has scale shape [A]."""

    axis: int = 0
    name = "channel"


@dataclass(frozen=True)
class PerBlock:
    """One scale per ``size`` values along ``axis``; W [A, B], axis 1: [A, ceil(B / size)]."""

    axis: int
    size: int
    name = "block"


Granularity = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True)
class QuantSpec:
    """The requested properties of a grid, without scale and zero point.

    Attributes:
        bits: 1..16 for data, 32 for biases; 1 bit exists only as a Codebook.
        signed: codes around zero, else from 0 up.
        symmetric: the zero point is 0.
        narrow: a signed symmetric grid excludes its lowest code, -2^(bits-1), so that -x is
            representable whenever x is; False where a runtime's QuantizeLinear writes that code.
        granularity: one scale per tensor, channel or block.
        scale_kind: float | power_of_two | fixed_point:<bits> | double_shift.
    """

    bits: int
    signed: bool
    symmetric: bool
    granularity: Granularity = PerTensor()
    scale_kind: str = "float"
    narrow: bool = True

    @property
    def qmin(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        return -(2 ** (self.bits - 1)) + int(self.symmetric and self.narrow)

    @property
    def qmax(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - int(self.signed)) - 1

    @property
    def container(self) -> np.dtype:
        """The integer type that holds the codes: the narrowest of 8, 16 and 32 bits."""
        wide = next(size for size in (8, 16, 32) if self.bits <= size)
        return np.dtype(f"{'' if self.signed else 'u'}int{wide}")


@dataclass(frozen=True, eq=False)
class QuantParams:
    """A grid: a ``spec`` with scale and zero point.

    Attributes:
        spec: the requested properties.
        scale: float32, in value units per step; shape [] | [C] | [.., blocks].
        zero_point: int32, same shape, the code of the value 0.
    """

    spec: QuantSpec
    scale: np.ndarray
    zero_point: np.ndarray

    @property
    def container(self) -> np.dtype:
        """The integer type that holds the codes."""
        return self.spec.container

    @property
    def lo(self) -> np.ndarray:
        """Lowest representable value, float64, shape of the scale."""
        return (self.spec.qmin - self.zero_point) * self.scale.astype(np.float64)

    @property
    def hi(self) -> np.ndarray:
        """Highest representable value, float64, shape of the scale."""
        return (self.spec.qmax - self.zero_point) * self.scale.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Codebook(QuantParams):
    """A grid with a subset of codes: its values are ``(level - zero_point) * scale``.

    Attributes:
        spec: ``bits`` are those of an index into the levels.
        levels: int32 [k], ascending, at most 2**bits (3 for ternary, where bits is 2).
    """

    levels: np.ndarray

    @property
    def container(self) -> np.dtype:
        """The type int8 where every level fits, else int16 (weight-only code books)."""
        return np.dtype(np.int8 if np.abs(self.levels).max() <= 127 else np.int16)

    @property
    def lo(self) -> np.ndarray:
        """Lowest value, float64, shape of the scale."""
        return (self.levels[0] - self.zero_point) * self.scale.astype(np.float64)

    @property
    def hi(self) -> np.ndarray:
        """Highest value, float64, shape of the scale."""
        return (self.levels[-1] - self.zero_point) * self.scale.astype(np.float64)


# A smaller scale is close to the denormal float32 numbers that runtimes flush to zero.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**10
# Scale of channels whose weights are all zero: small enough to give their bias fine steps, and its
# product with the scale of an activation is no denormal.
NEGLIGIBLE_SCALE = 2.0**-60


def params_from_range(lo: Array, hi: Array, spec: QuantSpec) -> QuantParams:
    """Compute the grid that covers a range and contains zero exactly.

    symmetric:  scale = max(-lo, hi) / qmax (hi / qmax if unsigned),  zero_point = 0
    asymmetric: scale = (hi - lo) / (qmax - qmin),  zero_point = round(qmin - lo / scale)

    The range is widened to include 0. A range without extent (all values zero) gives scale 1.

    Args:
        lo: lower limits, float, shape [] or [C], in value units.
        hi: upper limits, same shape.
        spec: the requested properties.

    Returns:
        The grid, scale of the limits' shape.

    Raises:
        ValueError: a limit is NaN or infinite (callers name the value).
    """
    lo = np.minimum(np.asarray(lo, np.float64), 0.0)
    hi = np.maximum(np.asarray(hi, np.float64), 0.0)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError(f"the range [{lo.min()}, {hi.max()}] is not finite")
    if spec.symmetric:
        amax = np.maximum(-lo, hi) if spec.signed else hi
        scale = amax / spec.qmax
        zero_point = np.zeros(scale.shape, np.int32)
    else:
        scale = (hi - lo) / (spec.qmax - spec.qmin)
    scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0).astype(np.float32)
    if not spec.symmetric:
        # float32 scale first: the zero point must belong to the scale that is stored.
        zero_point = np.rint(spec.qmin - lo / scale.astype(np.float64))
        zero_point = np.clip(zero_point, spec.qmin, spec.qmax).astype(np.int32)
    return QuantParams(spec, scale, zero_point)


def round_half_even(x: Array) -> Array:
    """Round half to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2 (ONNX, numpy, torch)."""
    return x.round()


def round_half_away(x: Array) -> Array:
    """Round half away from zero: 0.5 -> 1, -0.5 -> -1 (C ``round``, N2D2, gemmlowp)."""
    even = x.round()
    up, down = (x - even == 0.5) & (x > 0), (even - x == 0.5) & (x < 0)
    return -(down + -(even + up))  # only sums: torch subtracts no booleans


def round_half_up(x: Array) -> Array:
    """Round half up: 0.5 -> 1, -0.5 -> 0, 2.5 -> 3 (floor(x + 0.5), some DSPs)."""
    even = x.round()
    return even + (x - even == 0.5)  # x + 0.5 would itself be rounded: 0.49999997 -> 1


def align(params: QuantParams, x: Array) -> tuple[Array, Array]:
    """Return scale and zero point as float arrays that broadcast against ``x``.

    Args:
        params: the grid of ``x``.
        x: a numpy array or torch tensor; the results have its type.
    """
    granularity, scale, zero = params.spec.granularity, params.scale, params.zero_point
    if isinstance(granularity, PerChannel):
        shape = [1] * x.ndim
        shape[granularity.axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    elif isinstance(granularity, PerBlock):
        axis, size = granularity.axis, granularity.size
        scale = np.repeat(scale, size, axis).take(range(x.shape[axis]), axis)
        zero = np.repeat(zero, size, axis).take(range(x.shape[axis]), axis)
    zero = zero.astype(np.float32)
    if hasattr(x, "new_tensor"):
        return x.new_tensor(scale), x.new_tensor(zero)
    return scale, zero


def quantize(
    x: Array, params: QuantParams, rounding: Callable[[Array], Array] = round_half_even
) -> Array:
    """Compute the codes of ``x``: clip(rounding(x / scale) + zero_point, qmin, qmax).

    Codes are whole numbers in a float array, so that numpy and torch agree and gradients can pass;
    callers convert them to the container. 32-bit codes need a float64 ``x``.

    Args:
        x: float numpy array or torch tensor, any shape.
        params: its grid; with a Codebook, every value gets the nearest level.
        rounding: one of the ``round_half_*`` functions.

    Returns:
        Codes, type and shape of ``x``.
    """
    scale, zero = align(params, x)
    if isinstance(params, Codebook):
        return _nearest(x / scale + zero, params.levels)
    return (rounding(x / scale) + zero).clip(params.spec.qmin, params.spec.qmax)


def _nearest(x: Array, levels: np.ndarray) -> Array:
    """Return the nearest level of each number; half-way between two, the upper one."""
    level = x * 0 + float(levels[0])
    for below, above in itertools.pairwise(levels):
        level = level + (x >= (float(below) + float(above)) / 2) * float(above - below)
    return level


def dequantize(codes: Array, params: QuantParams) -> Array:
    """Compute the values of codes: ``(codes - zero_point) * scale``, shape of ``codes``."""
    scale, zero = align(params, codes)
    return (codes - zero) * scale


def fake_quantize(x: Array, params: QuantParams) -> Array:
    """Return the nearest representable values, dequantize(quantize(x)); idempotent bit for bit."""
    return dequantize(quantize(x, params), params)


def mean_factor(params: QuantParams, size: Sequence[int]) -> np.float32:
    """Compute scale / area, the factor from a sum of codes minus zero points to a mean value.

    Args:
        params: grid of the codes, one scale.
        size: extents of the area that is summed over.
    """
    return np.float32(params.scale / np.float32(np.prod(size)))
