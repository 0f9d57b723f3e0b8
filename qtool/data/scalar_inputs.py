"""Inputs of rank 0: one number for all samples of a call, such as a sampling rate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qtool.data.dataset import Batch, Dataset, InputSpec, Source
from qtool.errors import DataError


@dataclass(frozen=True, eq=False)
class ScalarSource:
    """Samples whose rank-0 inputs are fed as one number.

    Attributes:
        source: yields one number a sample for these inputs.
        names: of these inputs.
    """

    source: Source
    names: tuple[str, ...]

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches in order; the rank-0 inputs come last, as arrays without axes."""
        for batch in self.source.stream(positions, size):
            rows = {name: array for name, array in batch.items() if name not in self.names}
            yield {**rows, **{name: _number(name, batch[name]) for name in self.names}}

    def digest(self, position: int) -> str:
        """Return the sha256 of one sample's content."""
        return self.source.digest(position)


def _number(name: str, values: np.ndarray) -> np.ndarray:
    """Return the one number that all samples of a batch have."""
    distinct = np.unique(values)
    if len(distinct) != 1:
        shown = ", ".join(f"{number:g}" for number in distinct[:3])
        raise DataError(
            f"the model's input `{name}` is one number for all samples, but the samples have "
            f"{shown}; expected the same in every sample: make one run for each number"
        )
    return np.asarray(values.reshape(-1)[0])


def with_scalars(dataset: Dataset, inputs: Mapping[str, InputSpec]) -> Dataset:
    """Return the dataset; inputs of rank 0 become one number a batch.

    Args:
        dataset: yields one number a sample for them.
        inputs: the model's inputs by name.
    """
    names = tuple(name for name, spec in inputs.items() if not spec.shape)
    return replace(dataset, source=ScalarSource(dataset.source, names)) if names else dataset
