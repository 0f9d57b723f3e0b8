"""The inputs of a model: shapes, batch axes, constants, and the types of the data that fits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import numpy as np

from qtool.errors import DataError

# An input of so many numbers a sample may be one that never changes: a rate, the size of an image.
FEW = 8


@dataclass(frozen=True)
class InputSpec:
    """A model input, which the data must fit.

    Attributes:
        name: the input's name.
        shape: its dimensions; a string or None is dynamic.
        dtype: numpy's name of its element type, such as "float32" or "int64".
        batch_axis: the axis that counts the samples; None where one array is that of a whole call.
        constant: a number, or nested tuples of numbers, that every call reads; None: the data's.
        next_state: an output that may be this input of the next call, for messages.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str
    batch_axis: int | None = 0
    constant: Any = None
    next_state: str | None = None

    def __post_init__(self) -> None:
        """Give an input without axes no batch axis."""
        if not self.shape:
            object.__setattr__(self, "batch_axis", None)

    @property
    def batch(self) -> int | None:
        """The fixed batch size, or None where it is dynamic or there is no batch axis."""
        size = None if self.batch_axis is None else self.shape[self.batch_axis]
        return size if isinstance(size, int) else None

    @property
    def sample(self) -> tuple[int | str | None, ...]:
        """The shape of one sample: without the batch axis."""
        if self.batch_axis is None:
            return self.shape
        return (*self.shape[: self.batch_axis], *self.shape[self.batch_axis + 1 :])

    def sample_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of one sample in the array of a call."""
        return tuple(size for axis, size in enumerate(shape) if axis != self.batch_axis)

    def fits(self, sample: Sequence[int]) -> bool:
        """Return whether one sample's shape (without the batch axis) fits; a dynamic size does."""
        return fits(self.sample, sample)

    def arrange(self, rows: np.ndarray) -> np.ndarray:
        """Return samples as the model reads them in one call.

        Args:
            rows: [samples, *sample].

        Raises:
            DataError: the model reads one array for all samples, and they differ in it.
        """
        if self.batch_axis is not None:
            return np.moveaxis(rows, 0, self.batch_axis)
        if len(rows) > 1 and not (rows == rows[:1]).all():
            raise DataError(
                f"the model's input {self.describe()} is one array for all samples of a call, but "
                "the samples differ in it; expected the same in every sample: make one run for "
                "each, or let every sample be a call of its own by giving an input the fixed "
                "batch size 1, such as `model: {onnx: .., input: {x: [1, 3, 224, 224]}}`"
            )
        return np.asarray(rows[0])

    def constant_rows(self, count: int) -> np.ndarray:
        """Return the constant as samples, [count, *sample]."""
        sizes = [size if isinstance(size, int) else 1 for size in self.sample]
        one = np.broadcast_to(np.asarray(self.constant, self.dtype), sizes)
        return np.repeat(one[None], count, axis=0)

    def describe(self) -> str:
        """Return the input as messages show it: ``x float32 [N, 3, 224, 224]``."""
        axis = f" (batch axis {self.batch_axis})" if self.batch_axis else ""
        return f"`{self.name}` {self.dtype} {show_shape(self.shape)}{axis}"


def constant_arrays(inputs: Mapping[str, InputSpec], count: int) -> dict[str, np.ndarray]:
    """Return what a call feeds the inputs that are constant, by name.

    Args:
        inputs: of the model, by name.
        count: samples of the call.
    """
    constants = {name: spec for name, spec in inputs.items() if spec.constant is not None}
    return {name: spec.arrange(spec.constant_rows(count)) for name, spec in constants.items()}


def fits(shape: Sequence[int | str | None], sizes: Sequence[int]) -> bool:
    """Return whether an array of these sizes has a shape; a dynamic dimension has any size."""
    return len(sizes) == len(shape) and all(
        not isinstance(size, int) or size == have for size, have in zip(shape, sizes, strict=True)
    )


def fixed_batch(specs: Iterable[InputSpec]) -> int | None:
    """Return the samples of a call where the model fixes them, else None.

    A model without any batch axis computes one sample in a call.
    """
    with_axis = [spec for spec in specs if spec.batch_axis is not None]
    if not with_axis:
        return 1
    return next((spec.batch for spec in with_axis if spec.batch is not None), None)


def samples_in(batch: Mapping[str, np.ndarray], specs: Iterable[InputSpec]) -> int:
    """Return the number of samples in the inputs of one call."""
    for spec in specs:
        if spec.batch_axis is not None:
            return batch[spec.name].shape[spec.batch_axis]
    return 1


def unfed_hint(specs: Iterable[InputSpec]) -> str:
    """Return the end of a message about inputs without data: they may be states, or constants."""
    inputs = list(specs)
    pairs = ", ".join(f"{spec.next_state}: {spec.name}" for spec in inputs if spec.next_state)
    text = f"; or, if it is a state, feed outputs back: `loop: {{{pairs}}}`" if pairs else ""
    small = ", ".join(
        f"{spec.name}: {{constant: ..}}"
        for spec in inputs
        if not spec.next_state and prod(_size(size) for size in spec.sample) <= FEW
    )
    if small:
        text += f"; or, if it never changes: `model: {{onnx: .., input: {{{small}}}}}`"
    return text


def _size(size: int | str | None) -> float:
    return size if isinstance(size, int) else inf


def show_shape(shape: Sequence[int | str | None]) -> str:
    """Format a shape for messages; a dynamic dimension is its name or ``?``."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def check_sample_shapes(
    spec: InputSpec, shapes: Iterable[tuple[str, Sequence[int]]], where: str
) -> None:
    """Refuse samples that have several sizes where the model's input leaves its size open.

    Args:
        spec: the model's input.
        shapes: names of samples and their shapes, without the batch axis; every shape fits.
        where: the data, for messages.

    Raises:
        DataError: naming the dimension, its sizes and the line for the recipe.
    """
    first: dict[tuple[int, ...], str] = {}
    for name, shape in shapes:
        first.setdefault(tuple(shape), name)
    for axis, sizes in enumerate(zip(*first, strict=True)):
        if len(set(sizes)) < 2:
            continue
        at = dict(zip(reversed(sizes), reversed(list(first.values())), strict=True))
        shown = ", ".join(f"{size} ({at[size]})" for size in sorted(at)[:3])
        more = f" and {len(at) - 3} more sizes" if len(at) > 3 else ""
        line: list[int | str | None] = [*map(max, zip(*first, strict=True))]
        place = axis
        if spec.batch_axis is not None:
            line.insert(spec.batch_axis, spec.shape[spec.batch_axis] or "N")
            place += axis >= spec.batch_axis
        dim = spec.sample[axis] or f"dimension {place}"
        raise DataError(
            f"{where}: the model's input {spec.describe()} leaves {dim} open, and the samples "
            f"differ in it: {shown}{more}; expected one size, which the file is planned for: pad "
            f"or cut the samples to it, and write it into the recipe, such as "
            f"`model: {{.., input: {{{spec.name}: {show_shape(line)}}}}}`"
        )


def cast(rows: np.ndarray, spec: InputSpec, where: str) -> np.ndarray:
    """Cast rows to the model input's dtype where no value can change beyond rounding.

    Floats become other floats, integers other integers that hold every value, small integers
    floats; anything else is refused.

    Args:
        rows: an array of samples, [N, ...].
        spec: the model's input.
        where: the data, for messages.

    Raises:
        DataError: the dtypes do not fit, or a value does not.
    """
    remedy = f"save the array as {spec.dtype}"
    try:
        dtype = np.dtype(spec.dtype)
        if dtype.isbuiltin != 1:  # ml_dtypes, where something imported it
            raise TypeError(spec.dtype)
    except TypeError as error:
        raise DataError(
            f"{where}: the model's input `{spec.name}` is {spec.dtype}, which numpy data cannot "
            "be; expected float16, float32, float64, bool or an integer type: convert the model"
        ) from error
    have = rows.dtype
    both_integers = have.kind in "iu" and dtype.kind in "iu"
    if not (np.can_cast(have, dtype, "safe") or have.kind == dtype.kind == "f" or both_integers):
        raise DataError(
            f"{where}: found {have}, but the model's input `{spec.name}` is {dtype}; {remedy}"
        )
    with np.errstate(over="ignore"):  # a float that overflows becomes inf, which is refused later
        converted = rows.astype(dtype, copy=False)
    if both_integers and not np.array_equal(converted, rows):
        raise DataError(
            f"{where}: values {rows.min()}..{rows.max()} do not fit {dtype}, the type of the "
            f"model's input `{spec.name}`; {remedy}"
        )
    return converted
