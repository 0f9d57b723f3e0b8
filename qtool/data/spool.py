"""Write batches that can be read once to disk, so that they can be read again in any order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.data.dataset import Dataset
from qtool.data.source import Batch, row_digest


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Samples in arrays with a leading sample axis, such as files mapped into memory."""

    arrays: Mapping[str, np.ndarray]

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield the rows at the positions in order, ``size`` at a time."""
        for start in range(0, len(positions), size):
            rows = list(positions[start : start + size])
            yield {name: np.asarray(array[rows]) for name, array in self.arrays.items()}

    def digest(self, position: int) -> str:
        """Return the sha256 of one sample's rows."""
        return row_digest({name: array[position] for name, array in self.arrays.items()})


def spool_batches(batches: Iterable[Mapping[str, np.ndarray]], folder: Path) -> Dataset:
    """Return a dataset of all rows of some batches; memory does not depend on their number.

    Args:
        batches: input name -> array; equal dtypes, and equal shapes but for the first axis.
        folder: an existing folder; it must outlive the dataset.

    Raises:
        ValueError: there is no batch.
    """
    count, described = 0, {}
    files: dict[str, Path] = {}
    for batch in batches:
        for k, (name, array) in enumerate(batch.items()):
            path = files.setdefault(name, folder / f"input{k}.bin")
            described[name] = (array.dtype, array.shape[1:])
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(array).tobytes())
        count += len(next(iter(batch.values())))
    if not count:
        raise ValueError("there is no batch")
    arrays = {
        name: np.memmap(path, described[name][0], "r", shape=(count, *described[name][1]))
        for name, path in files.items()
    }
    names = tuple(f"sample {k}" for k in range(count))
    return Dataset(names, ArraySource(arrays), tuple(range(count)))
