"""What a value of a quantized graph stands for: ``float value / scale + zero point``.

Scales of dynamically quantized graphs are known at run time only; products of such scales are
compared as products, so that they cancel where the graph multiplies by them again.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import constant, rank

# Two float32 products of the same scales, in another order.
SAME = 1e-5


@dataclass(frozen=True, eq=False)
class Scale:
    """A constant times powers of scalars that are computed at run time.

    Attributes:
        number: float64, [] or an array that broadcasts against the value it belongs to.
        unknown: computed scalar -> its power; powers of 0 are left out.
    """

    number: np.ndarray
    unknown: Mapping[ir.Value, int] = field(default_factory=dict)

    def __mul__(self, other: "Scale") -> "Scale":
        return self._times(other, 1)

    def __truediv__(self, other: "Scale") -> "Scale":
        return self._times(other, -1)

    def _times(self, other: "Scale", sign: int) -> "Scale":
        powers = Counter(dict(self.unknown))
        for value, power in other.unknown.items():
            powers[value] += sign * power
        number = self.number * other.number if sign > 0 else self.number / other.number
        return Scale(number, {value: power for value, power in powers.items() if power})

    def equals(self, other: "Scale") -> bool:
        """The same up to the rounding of float32 products."""
        return self.unknown == other.unknown and _close(self.number, other.number)

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return self.equals(ONE)


ONE = Scale(np.float64(1.0))  # type: ignore[arg-type]
Zero = np.ndarray | ir.Value  # a zero point: known, or computed at run time


@dataclass(frozen=True, eq=False)
class Held:
    """A value of the quantized graph, ``real / scale + zero``, rounded where its type is integer.

    Attributes:
        real: the float value it stands for, in the graph being made.
        scale: value units per step.
        zero: the code of 0, float64, or the value that holds it.
        dtype: the type the value has in the quantized graph.
    """

    real: ir.Value
    scale: Scale
    zero: Zero
    dtype: ir.DataType

    @property
    def is_scalar(self) -> bool:
        """One grid for all elements: moving them does not change what they stand for."""
        zero = self.zero
        return self.scale.number.size == 1 and (isinstance(zero, ir.Value) or zero.size == 1)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return bool(np.all(np.abs(a - b) <= SAME * np.abs(b)))
    except ValueError:  # shapes that do not broadcast
        return False


def same_zero(a: Zero, b: Zero) -> bool:
    """Whether two zero points are one."""
    if isinstance(a, ir.Value) or isinstance(b, ir.Value):
        return a is b
    return _close(a, b)


def monomial(value: ir.Value) -> Scale:
    """A scale read from the graph: a constant, a product of scales, or a computed scalar."""
    array = constant(value)
    if array is not None:
        number = np.asarray(array, np.float64)
        return Scale(number.reshape(()) if number.size == 1 else number)
    made = value.producer()
    if made is not None and made.op_type in ("Mul", "Div") and made.domain in ("", "ai.onnx"):
        left, right = made.inputs
        if left is not None and right is not None:
            a, b = monomial(left), monomial(right)
            return a * b if made.op_type == "Mul" else a / b
    return Scale(np.float64(1.0), {value: 1})  # type: ignore[arg-type]


def spread(array: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Scales or zero points as they broadcast against a value.

    Args:
        array: [] or [1] per tensor, [C] along ``axis``, or blocked: the rank of the value.
        shape: of the value; of blocked ones all dimensions are known.
        axis: of the channels or blocks.
        block: values per block along the axis; 0 when not blocked.
    """
    array = np.asarray(array, np.float64)
    if array.size == 1 and (not block or array.ndim < 2):
        return array.reshape(())
    axis = axis % len(shape) if axis < len(shape) else 0  # a vector's only axis is 0
    if array.ndim == 1 and (len(shape) > 1 or not block):
        return array.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    size = block or -(-shape[axis] // array.shape[axis])
    return np.take(np.repeat(array, size, axis), range(shape[axis]), axis)


def limits(dtype: ir.DataType) -> tuple[float, float]:
    """Smallest and largest code of a type."""
    name = dtype.name
    if name.startswith("FLOAT"):
        import ml_dtypes

        found = ml_dtypes.finfo(dtype.numpy())
        return float(found.min), float(found.max)
    bits = int(dtype.bitwidth)
    return (
        (0.0, 2.0**bits - 1) if name.startswith("U") else (-(2.0 ** (bits - 1)), 2.0**bits / 2 - 1)
    )


def numbers(value: ir.Value | None) -> np.ndarray | None:
    """A constant's codes as float64, or None where it is computed."""
    array = constant(value)
    return None if array is None else np.asarray(array).astype(np.float64)


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape with 0 for what is unknown; () when even the rank is."""
    if value.shape is None or not rank(value):
        return ()
    return tuple(d if isinstance(d, int) else 0 for d in value.shape)
