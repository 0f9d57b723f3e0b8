"""States of streams, recorded in a folder, so that calls can be read in any order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec
from qtool.data.source import Batch, Source
from qtool.data.streams.loop import Compute

POSITIONS = "positions.npy"
"""The file of the positions whose states are recorded; one file a state lies beside it."""


@dataclass(frozen=True, eq=False)
class RecordedStates:
    """Calls with states that were recorded, so that they can be read in any order.

    Attributes:
        calls: yields the other inputs.
        states: input -> its arrays, samples first.
        rows: position of a call -> row of the arrays.
        specs: the inputs that are states.
    """

    calls: Source
    states: Mapping[str, np.ndarray]
    rows: Mapping[int, int]
    specs: Mapping[str, InputSpec]

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield the calls at the positions in order, ``size`` at a time."""
        for number, batch in enumerate(self.calls.stream(positions, size)):
            rows = [self.rows[k] for k in positions[number * size : (number + 1) * size]]
            states = {name: self.states[name][rows] for name in self.specs}
            yield {**batch, **{name: self.specs[name].arrange(a) for name, a in states.items()}}

    def digest(self, position: int) -> str:
        """Return the sha256 of a call and of the calls before it in its stream."""
        return self.calls.digest(position)


def record_states(
    dataset: Dataset, inputs: Mapping[str, InputSpec], compute: Compute, folder: Path
) -> Iterator[int]:
    """Run the streams of a dataset, and write the states that its calls read to a folder.

    Args:
        dataset: has a loop.
        inputs: the model's inputs by name.
        compute: the network.
        folder: an empty one.

    Yields:
        The number of calls that were recorded, after each.
    """
    loop = dataset.loop
    if loop is None:
        raise AssertionError("the samples are no calls of streams")
    order = sorted(set(dataset.positions))
    files: dict[str, np.memmap] = {}
    for k, (name, array) in enumerate(loop.initial.items()):
        shape = (len(order), *samples_first(array, inputs[name]).shape[1:])
        path = folder / f"{k}.npy"
        files[name] = np.lib.format.open_memmap(path, "w+", array.dtype, shape)
    with closing(loop.run(order, compute)) as calls:  # type: ignore[type-var]
        for row, (_, feeds, _) in enumerate(calls):
            for name, file in files.items():
                file[row] = samples_first(feeds[name], inputs[name])[0]
            yield row + 1
    for file in files.values():
        file.flush()
    np.save(folder / POSITIONS, np.array(order, np.int64))


def with_recorded_states(
    dataset: Dataset, inputs: Mapping[str, InputSpec], folder: Path
) -> Dataset:
    """Return the dataset with the states that were recorded in a folder.

    Args:
        dataset: its calls are among the recorded ones.
        inputs: the model's inputs by name.
        folder: written by :func:`record_states`.
    """
    loop = dataset.loop
    if loop is None:
        return dataset
    specs = {name: inputs[name] for name in loop.initial}
    states = {name: np.load(folder / f"{k}.npy", mmap_mode="r") for k, name in enumerate(specs)}
    rows = {int(position): row for row, position in enumerate(np.load(folder / POSITIONS))}
    return replace(dataset, source=RecordedStates(loop.calls, states, rows, specs))


def samples_first(array: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return an input of one call as samples, [samples, *sample]."""
    return array[None] if spec.batch_axis is None else np.moveaxis(array, spec.batch_axis, 0)
