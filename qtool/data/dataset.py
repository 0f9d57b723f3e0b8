"""A dataset: named samples in a fixed order, fetched in batches as they are needed."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from qtool.data.preprocess import Preprocess
from qtool.errors import DataError

Batch = dict[str, np.ndarray]
"""Model input names (and "label" where there are labels) to arrays with a leading sample axis."""

LABEL = "label"


@dataclass(frozen=True)
class InputSpec:
    """A model input, which the data must fit.

    Attributes:
        name: the input's name.
        shape: its dimensions, the batch first; a string or None is dynamic.
        dtype: numpy's name of its element type, such as "float32" or "int64".
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str

    @property
    def batch(self) -> int | None:
        """The fixed batch size, or None where it is dynamic."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None

    def fits(self, sample: Sequence[int]) -> bool:
        """Return whether one sample's shape (without the batch axis) fits; a dynamic size does."""
        expected = self.shape[1:]
        return len(sample) == len(expected) and all(
            not isinstance(size, int) or size == have
            for size, have in zip(expected, sample, strict=True)
        )

    def describe(self) -> str:
        """Return the input as messages show it: ``x float32 [N, 3, 224, 224]``."""
        return f"`{self.name}` {self.dtype} {show_shape(self.shape)}"


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
    for axis, sizes in enumerate(zip(*first, strict=True), 1):
        if len(set(sizes)) < 2:
            continue
        at = dict(zip(reversed(sizes), reversed(list(first.values())), strict=True))
        shown = ", ".join(f"{size} ({at[size]})" for size in sorted(at)[:3])
        more = f" and {len(at) - 3} more sizes" if len(at) > 3 else ""
        dim = spec.shape[axis] or f"dimension {axis}"
        line = [spec.shape[0] or "N", *map(max, zip(*first, strict=True))]
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


@dataclass(frozen=True)
class Opening:
    """Settings for opening a dataset that are not the recipe's.

    Attributes:
        workers: how many threads decode images; 0 decodes in the thread that iterates over the
            batches, None is one per usable core.
        trust_code: whether the user allowed the recipe to run code of its own.
    """

    workers: int | None = None
    trust_code: bool = False


def row_digest(row: Batch) -> str:
    """Compute the sha256 over one row of every input, by input name, as the model gets it."""
    total = hashlib.sha256()
    for name, values in sorted(row.items()):
        total.update(f"{name} {values.dtype} {values.shape}".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


class Source(Protocol):
    """The origin of a dataset's samples; positions count the source's own samples."""

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield the model inputs at the positions in order, ``size`` rows at a time."""

    def digest(self, position: int) -> str:
        """Return the sha256 of one sample's content; it is computed once."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in a fixed order, read batch by batch.

    Attributes:
        names: one name per sample, such as ``cat/003.png`` or ``f.npz[12]``.
        source: fetches samples by position.
        positions: each sample's position in the source.
        labels: one label per sample, [count] integers for classification, or None.
        classes: class names by label, or None.
        notes: assumptions made while opening, for the report.
        preprocess: how pixels became the model's input; None where the samples are no images.
        synthetic: the samples are made up: no accuracy can be measured on them.
    """

    names: tuple[str, ...]
    source: Source
    positions: tuple[int, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default=())
    preprocess: Preprocess | None = None
    synthetic: bool = False

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.names)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield every sample once, in order, ``size`` rows a batch; the last may be shorter.

        Memory does not depend on ``count``. Closing the iterator early ends its threads.

        Args:
            size: rows a batch, 1 or more.

        Raises:
            DataError: a sample cannot be read, does not fit the model, or is not finite.
        """
        if size < 1:
            raise ValueError(f"batch size is {size}; expected 1 or more")
        start = 0
        with closing(self.source.stream(self.positions, size)) as stream:  # type: ignore[type-var]
            for batch in stream:
                rows = len(next(iter(batch.values())))
                if self.labels is not None:
                    batch[LABEL] = self.labels[start : start + rows]
                start += rows
                yield batch

    def padded(self, size: int) -> Iterator[tuple[Batch, int]]:
        """Yield ``(batch, valid)`` for a model with a fixed batch: every batch has ``size`` rows.

        The last batch repeats its last row; only the first ``valid`` rows are samples, so trim
        outputs with ``[:valid]``.

        Args:
            size: rows of every batch, 1 or more.
        """
        with closing(self.batches(size)) as stream:  # type: ignore[type-var]
            for batch in stream:
                valid = len(next(iter(batch.values())))
                if valid < size:
                    missing = size - valid
                    batch = {
                        name: np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
                        if rows.ndim
                        else rows
                        for name, rows in batch.items()
                    }
                yield batch, valid

    def take(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
        """Return the samples at these indices (0..count-1), in this order."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            names=tuple(self.names[index] for index in chosen),
            positions=tuple(self.positions[index] for index in chosen),
            labels=None if self.labels is None else self.labels[chosen],
        )

    def digests(self) -> tuple[str, ...]:
        """Return the sha256 of each sample's content (file or row bytes), without its label."""
        return tuple(self.source.digest(position) for position in self.positions)

    @cached_property
    def digest(self) -> str:
        """The sha256 over the sample digests in order, and over the labels where there are any."""
        total = hashlib.sha256("\n".join(self.digests()).encode())
        if self.labels is not None:
            total.update(np.ascontiguousarray(self.labels).tobytes())
        return total.hexdigest()


def split(dataset: Dataset, holdout: int | float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a dataset into (rest, holdout); both have the dataset's order.

    Where there are class labels, every class gives its share, as evenly as whole samples allow.

    Args:
        dataset: at least 2 samples.
        holdout: how many samples to hold out, or a fraction between 0 and 1.
        seed: fixes the choice.

    Raises:
        DataError: one of the two parts would be empty.
    """
    size = round(holdout * dataset.count) if isinstance(holdout, float) else holdout
    if not 0 < size < dataset.count:
        raise DataError(
            f"found {dataset.count} samples, of which {size} are to be held out; expected at "
            "least one sample on either side: give more data"
        )
    order = np.random.default_rng(seed).permutation(dataset.count)
    labels = dataset.labels
    if labels is not None and labels.ndim == 1:
        # Sorted by rank within the class, any prefix holds the same share of every class.
        order = order[np.argsort(_class_share(labels[order]), kind="stable")]
    chosen = np.sort(order[:size])
    rest = np.sort(order[size:])
    return dataset.take(rest), dataset.take(chosen)


def _class_share(labels: np.ndarray) -> np.ndarray:
    """Compute each sample's relative rank within its class, (rank + 1/2) / class size."""
    share = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return share


def drop_overlap(calibration: Dataset, evaluation: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """Remove from calibration every sample whose content also occurs in evaluation.

    Args:
        calibration: the samples to remove from.
        evaluation: the samples to compare with.

    Returns:
        The remaining calibration samples, and the names of those dropped (in order).
    """
    seen = set(evaluation.digests())
    overlap = [digest in seen for digest in calibration.digests()]
    remaining = [index for index, same in enumerate(overlap) if not same]
    dropped = tuple(name for name, same in zip(calibration.names, overlap, strict=True) if same)
    return calibration.take(remaining), dropped
