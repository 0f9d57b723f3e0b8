"""A dataset: named samples in a fixed order, fetched in batches as they are needed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from qtool.data.preprocess import Preprocess
from qtool.data.source import LABEL, Batch, Source, per_sample
from qtool.data.streams import Compute, Loop
from qtool.errors import DataError, SampleError


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
        starts: positions in the source at which a stream of calls begins; none: no streams.
        loop: feeds outputs back as inputs; None where no input is an earlier output.
        guesses: keys of the recipe's section that the reader filled in, for the resolved recipe.
    """

    names: tuple[str, ...]
    source: Source
    positions: tuple[int, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default=())
    preprocess: Preprocess | None = None
    synthetic: bool = False
    starts: tuple[int, ...] = ()
    loop: Loop | None = None
    guesses: Mapping[str, Any] = field(default_factory=dict)

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
        with closing(self.source.stream(self.positions, size)) as stream:  # type: ignore[type-var]
            for number, batch in enumerate(stream):
                if self.labels is not None:
                    batch[LABEL] = self.labels[number * size : (number + 1) * size]
                yield batch

    def calls(self, size: int, full: bool = False) -> Iterator[tuple[Batch, int]]:
        """Yield ``(batch, valid)``: the inputs of one call of the model, and its samples.

        Args:
            size: samples of a call, 1 or more.
            full: the model takes this size alone. Then the last batch repeats its last sample;
                only its first ``valid`` rows are samples, so trim outputs with ``[:valid]``.
        """
        indices = [*range(self.count), *[self.count - 1] * (-self.count % size if full else 0)]
        with closing(self.take(indices).batches(size)) as stream:  # type: ignore[type-var]
            for number, batch in enumerate(stream):
                yield batch, min(size, self.count - number * size)

    @property
    def fed_back(self) -> tuple[str, ...]:
        """The model's outputs that are inputs of the next call of a stream."""
        return () if self.loop is None else tuple(self.loop.outputs)

    def outputs(
        self, compute: Compute, name: str, size: int, fixed: int | None
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Yield one output of each call, samples first, and the number of these samples.

        The calls of a stream read the states that ``compute`` returned in the calls before.

        Args:
            compute: the network; returns at least this output and those that are fed back.
            name: of the output.
            size: samples of a call, where they are no calls of streams.
            fixed: samples that the model computes in any call; None where it takes any number.
        """
        if self.loop is not None:
            for _, _, outputs in self.loop.run(self.positions, compute):
                yield per_sample(outputs[name], 1, 1), 1
            return
        for batch, valid in self.calls(fixed or size, fixed is not None):
            yield per_sample(compute(batch)[name], valid, fixed), valid

    def choose(self, count: int) -> list[int]:
        """Choose so many indices: evenly spread, or the first calls of every stream."""
        if self.loop is not None:
            return self.loop.first_calls(self.positions, count)
        # Not the first ones: samples in class folders are sorted by class.
        return [k * self.count // count for k in range(count)]

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


def drop_unusable(dataset: Dataset) -> tuple[Dataset, dict[str, SampleError]]:
    """Remove samples that are damaged or hold NaN or infinity; calls of streams, all needed, stay.

    Args:
        dataset: the samples; their digests are computed, which later stages need anyway.

    Returns:
        The remaining samples, and the errors of those dropped, by name (in order).

    Raises:
        SampleError: no sample would be left, or a call of a stream is unusable.
    """
    remaining: list[int] = []
    dropped: dict[str, SampleError] = {}
    for index, position in enumerate(dataset.positions):
        try:
            dataset.source.digest(position)
        except SampleError as error:
            if dataset.loop is not None or (index + 1 == dataset.count and not remaining):
                raise
            dropped[dataset.names[index]] = error
        else:
            remaining.append(index)
    return (dataset.take(remaining) if dropped else dataset), dropped


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
