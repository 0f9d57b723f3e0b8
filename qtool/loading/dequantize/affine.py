"""The affine map between a quantized value and the float value it represents.

    codes = real / scale + zero point

In dynamically quantized graphs the scales are computed at run time. They are kept as symbolic
products, which cancel where the graph multiplies by the same scales again.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import constant, rank

# Relative difference of float32 products of the same scales in another order: a few roundings of
# 6e-8 each, with a wide margin; scales that differ on purpose differ by more.
RELATIVE_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Scale:
    """A constant times powers of scalars that are computed at run time.

    Attributes:
        constant: float64, [] or an array that broadcasts against the value it belongs to.
        dynamic: scalar computed at run time -> its power, never 0.
    """

    constant: np.ndarray
    dynamic: Mapping[ir.Value, int] = field(default_factory=dict)

    def __mul__(self, other: "Scale") -> "Scale":
        return self._multiply(other, 1)

    def __truediv__(self, other: "Scale") -> "Scale":
        return self._multiply(other, -1)

    def _multiply(self, other: "Scale", sign: int) -> "Scale":
        """Multiply by ``other ** sign``."""
        powers = Counter(dict(self.dynamic))
        for value, power in other.dynamic.items():
            powers[value] += sign * power
        constant = self.constant * other.constant if sign > 0 else self.constant / other.constant
        return Scale(constant, {value: power for value, power in powers.items() if power})

    def equals(self, other: "Scale") -> bool:
        """Return whether two scales are equal up to the rounding of float32 products."""
        return self.dynamic == other.dynamic and _close(self.constant, other.constant)

    @property
    def is_one(self) -> bool:
        """True for the scale 1."""
        return self.equals(ONE)


ONE = Scale(np.float64(1.0))  # type: ignore[arg-type]
ZeroPoint = np.ndarray | ir.Value  # float64, or the value that is computed at run time


@dataclass(frozen=True, eq=False)
class QuantizedValue:
    """A value of the quantized graph: real / scale + zero_point, rounded if its type is integer.

    Attributes:
        real: the float value that it represents, in the float graph.
        scale: step size in units of ``real``.
        zero_point: the code of 0.0, float64, or a value computed at run time.
        dtype: its type in the quantized graph.
    """

    real: ir.Value
    scale: Scale
    zero_point: ZeroPoint
    dtype: ir.DataType

    @property
    def is_per_tensor(self) -> bool:
        """True where all elements share one scale and zero point, so that they may be reordered."""
        zero = self.zero_point
        return self.scale.constant.size == 1 and (isinstance(zero, ir.Value) or zero.size == 1)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return bool(np.all(np.abs(a - b) <= RELATIVE_TOLERANCE * np.abs(b)))
    except ValueError:  # shapes that do not broadcast
        return False


def same_zero_point(a: ZeroPoint, b: ZeroPoint) -> bool:
    """Return whether two zero points are equal, or the same value computed at run time."""
    if isinstance(a, ir.Value) or isinstance(b, ir.Value):
        return a is b
    return _close(a, b)


def parse_scale(value: ir.Value) -> Scale:
    """Read a scale from the graph.

    Args:
        value: a constant, a product or quotient of scales, or any other scalar.

    Returns:
        Its constant factor, and the powers of the scalars that are computed at run time.
    """
    array = constant(value)
    if array is not None:
        scale = np.asarray(array, np.float64)
        return Scale(scale.reshape(()) if scale.size == 1 else scale)
    made = value.producer()
    if made is not None and made.op_type in ("Mul", "Div") and made.domain in ("", "ai.onnx"):
        left, right = made.inputs
        if left is not None and right is not None:
            a, b = parse_scale(left), parse_scale(right)
            return a * b if made.op_type == "Mul" else a / b
    return Scale(np.float64(1.0), {value: 1})  # type: ignore[arg-type]


def broadcast_scale(array: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Reshape or repeat scales or zero points so that they broadcast against a value.

    Args:
        array: [] or [1] per tensor, [C] per channel along ``axis``, or blocked: the rank of the
            value, with one entry per block along ``axis``.
        shape: of the value; for blocked scales all dimensions must be static.
        axis: of the channels or blocks.
        block: values per block along the axis; 0 when not blocked.

    Returns:
        float64, [] or an array of the value's rank.
    """
    array = np.asarray(array, np.float64)
    if array.size == 1 and (not block or array.ndim < 2):
        return array.reshape(())
    axis = axis % len(shape) if axis < len(shape) else 0  # a vector's only axis is 0
    if array.ndim == 1 and (len(shape) > 1 or not block):
        return array.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    size = block or -(-shape[axis] // array.shape[axis])
    return np.take(np.repeat(array, size, axis), range(shape[axis]), axis)


def code_range(dtype: ir.DataType) -> tuple[float, float]:
    """Return the smallest and the largest value of an integer or 8-bit float type."""
    name = dtype.name
    if name.startswith("FLOAT"):
        import ml_dtypes

        info = ml_dtypes.finfo(dtype.numpy())
        return float(info.min), float(info.max)
    bits = int(dtype.bitwidth)
    return (
        (0.0, 2.0**bits - 1) if name.startswith("U") else (-(2.0 ** (bits - 1)), 2.0**bits / 2 - 1)
    )


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant as float64, or None for a value that is computed at run time."""
    array = constant(value)
    return None if array is None else np.asarray(array).astype(np.float64)


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """Return the shape with 0 for symbolic dimensions; () where the rank is unknown."""
    if value.shape is None or not rank(value):
        return ()
    return tuple(d if isinstance(d, int) else 0 for d in value.shape)
