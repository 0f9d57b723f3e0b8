"""What a quantizer is: specs, parameters and the three verbs. Nothing else in qtool rounds.

The convention is that of ONNX QuantizeLinear: divide by the scale, round half to even, add the zero
point, saturate. The verbs use only methods that numpy arrays and torch tensors share, so one text
serves both and torch need not be imported here.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", sec. 2.1, arXiv:1712.05877; ONNX operator QuantizeLinear.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # a numpy array or a torch tensor; a verb returns the kind it was given


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
    """A grid that is asked for.

    Attributes:
        bits: 1..16 for data, 32 for biases; 1 bit has no grid of its own, only a Codebook.
        signed: codes around zero, else from 0 up.
        symmetric: the zero point is fixed (0 when signed).
        narrow: a signed symmetric grid leaves out its lowest code, -2^(bits-1), so that -x is
            representable whenever x is; False where a runtime's QuantizeLinear writes it.
        granularity: how many scales.
        scale_kind: float | power_of_two | fixed_point | double_shift.
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
    """A grid that was found: ``spec`` with its scale and zero point.

    Attributes:
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
    """A grid of which only some codes are used: the values are ``(level - zero_point) * scale``.

    Attributes:
        spec: its ``bits`` are those of an index into the levels.
        levels: int32 [k], ascending, at most 2**bits (3 for ternary, where bits is 2).
    """

    levels: np.ndarray

    @property
    def container(self) -> np.dtype:
        """int8 where every level fits, else int16 (code books that become floats at load)."""
        return np.dtype(np.int8 if np.abs(self.levels).max() <= 127 else np.int16)

    @property
    def lo(self) -> np.ndarray:
        """Lowest value, float64, shape of the scale."""
        return (self.levels[0] - self.zero_point) * self.scale.astype(np.float64)

    @property
    def hi(self) -> np.ndarray:
        """Highest value, float64, shape of the scale."""
        return (self.levels[-1] - self.zero_point) * self.scale.astype(np.float64)


# A smaller scale would be a denormal float32 that runtimes flush to zero.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**10
# Weights on such a scale leave nothing of their sums, and its product with an activation's scale is
# no denormal either.
NEGLIGIBLE_SCALE = 2.0**-60


def params_from_range(lo: Array, hi: Array, spec: QuantSpec) -> QuantParams:
    """Turn observed limits into a grid that contains zero exactly.

    The range is widened to include 0. A range without extent (all values zero) gives scale 1.

    Args:
        lo, hi: float limits, shape [] or [C], in value units.
        spec: the grid asked for.

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
    """0.5 -> 0, 1.5 -> 2, 2.5 -> 2 (ONNX, numpy, torch)."""
    return x.round()


def round_half_away(x: Array) -> Array:
    """0.5 -> 1, -0.5 -> -1, 2.5 -> 3 (C ``round``, N2D2, gemmlowp)."""
    even = x.round()
    up, down = (x - even == 0.5) & (x > 0), (even - x == 0.5) & (x < 0)
    return -(down + -(even + up))  # only sums: torch subtracts no booleans


def round_half_up(x: Array) -> Array:
    """0.5 -> 1, -0.5 -> 0, 2.5 -> 3 (floor(x + 0.5), some DSPs)."""
    even = x.round()
    return even + (x - even == 0.5)  # x + 0.5 would itself be rounded: 0.49999997 -> 1


def align(params: QuantParams, x: Array) -> tuple[Array, Array]:
    """Scale and zero point as float arrays of ``x``'s kind that broadcast against ``x``."""
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
    """Codes of ``x`` as a float array of its kind and shape; every code is an exact integer.

    Codes stay floats so that numpy and torch agree and gradients can pass; containers are chosen
    where they are stored. 32-bit codes need a float64 ``x``.
    """
    scale, zero = align(params, x)
    if isinstance(params, Codebook):
        return _nearest(x / scale + zero, params.levels)
    return (rounding(x / scale) + zero).clip(params.spec.qmin, params.spec.qmax)


def _nearest(x: Array, levels: np.ndarray) -> Array:
    """The nearest level of each number; half-way between two, the upper one."""
    level = x * 0 + float(levels[0])
    for below, above in itertools.pairwise(levels):
        level = level + (x >= (float(below) + float(above)) / 2) * float(above - below)
    return level


def dequantize(codes: Array, params: QuantParams) -> Array:
    """Values of codes: ``(codes - zero_point) * scale``, shape of ``codes``."""
    scale, zero = align(params, codes)
    return (codes - zero) * scale


def fake_quantize(x: Array, params: QuantParams) -> Array:
    """The nearest representable values; ``dequantize(quantize(x))``, idempotent bit for bit."""
    return dequantize(quantize(x, params), params)


def mean_factor(params: QuantParams, size: Sequence[int]) -> np.float32:
    """What turns a sum of codes (without zero points) over an area into the mean value."""
    return np.float32(params.scale / np.float32(np.prod(size)))
