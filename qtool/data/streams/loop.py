"""Streams: calls in order, in which outputs of one call are inputs of the next one."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from qtool.data.inputs import InputSpec, show_shape
from qtool.data.source import Batch, Source
from qtool.errors import DataError

Compute = Callable[[Batch], Mapping[str, np.ndarray]]
"""Runs a network on the inputs of one call and returns its outputs by name."""


@dataclass(frozen=True, eq=False)
class Loop:
    """Streams of calls, and the outputs that are fed back as inputs.

    Attributes:
        outputs: output -> the input that reads it in the next call.
        initial: input -> the array that the first call of a stream reads.
        calls: yields the other inputs of the calls, one call a position.
        starts: the position of each stream's first call, ascending; the first is 0.
    """

    outputs: Mapping[str, str]
    initial: Mapping[str, np.ndarray]
    calls: Source
    starts: tuple[int, ...]

    def run(
        self, positions: Sequence[int], compute: Compute
    ) -> Iterator[tuple[int, Batch, Mapping[str, np.ndarray]]]:
        """Run every stream from its first call to the last of its calls among the positions.

        Args:
            positions: of the calls to yield.
            compute: the network; it returns the outputs that are fed back, and any others.

        Yields:
            (position, inputs, outputs) of the calls at the positions, in order.

        Raises:
            DataError: an output that is fed back has another shape than the input.
        """
        chosen, order = set(positions), self._calls_to_run(positions)
        states: dict[str, np.ndarray] = {}
        with closing(self.calls.stream(order, 1)) as calls:  # type: ignore[type-var]
            for position, call in zip(order, calls, strict=True):
                if self._start(position) == position:
                    states = dict(self.initial)
                feeds = {**call, **states}
                outputs = compute(feeds)
                states = {name: self._fed_back(outputs, name) for name in states}
                if position in chosen:
                    yield position, feeds, outputs

    def first_calls(self, positions: Sequence[int], count: int) -> list[int]:
        """Choose so many of the positions that as few calls as possible have to be run.

        Args:
            positions: ascending.
            count: how many to choose.

        Returns:
            Indices into the positions, ascending: as many of each stream's first ones.
        """
        rank: dict[int, int] = {}
        ranks = []
        for position in positions:
            start = self._start(position)
            ranks.append(rank.get(start, 0))
            rank[start] = ranks[-1] + 1
        order = sorted(range(len(positions)), key=lambda k: (ranks[k], k))
        return sorted(order[:count])

    def _start(self, position: int) -> int:
        """Return the position of the first call of a position's stream."""
        return self.starts[bisect_right(self.starts, position) - 1]

    def _calls_to_run(self, positions: Sequence[int]) -> list[int]:
        """Return the calls of each stream that has a position, up to its last one."""
        last: dict[int, int] = {}
        for position in sorted(positions):
            last[self._start(position)] = position
        return [k for start, stop in last.items() for k in range(start, stop + 1)]

    def _fed_back(self, outputs: Mapping[str, np.ndarray], state: str) -> np.ndarray:
        """Return an input of the next call from the outputs of this one."""
        name = next(output for output, fed in self.outputs.items() if fed == state)
        before, array = self.initial[state], outputs[name]
        if array.shape != before.shape:
            raise DataError(
                f"loop: the output `{name}` has shape {show_shape(array.shape)}, the input "
                f"`{state}` that it feeds {show_shape(before.shape)}; expected the same: a state "
                "that grows from call to call has to be cut to one size inside the model"
            )
        return array.astype(before.dtype, copy=False)


def initial_state(spec: InputSpec) -> np.ndarray:
    """Return what the first call of a stream reads: the input's constant, or zeros.

    Args:
        spec: the input that is fed back; its batch size is 1 or dynamic.

    Raises:
        DataError: it has open sizes, or a batch of several samples.
    """
    if spec.batch not in (None, 1):
        raise DataError(
            f"loop: the model's input {spec.describe()} holds the states of {spec.batch} streams "
            f"in axis {spec.batch_axis}; expected that of one: export the model with a batch of 1 "
            "or an open one, or name the axis that counts the samples: "
            f"`model: {{.., input: {{{spec.name}: {{batch_axis: 1}}}}}}`"
        )
    if not all(isinstance(size, int) for size in spec.sample):
        sizes = [size if isinstance(size, int) else 1 for size in spec.shape]
        raise DataError(
            f"loop: the model's input {spec.describe()} has open sizes; expected the sizes of one "
            "stream's state: write them into the recipe, such as "
            f"`model: {{.., input: {{{spec.name}: {show_shape(sizes)}}}}}`"
        )
    start = replace(spec, constant=0) if spec.constant is None else spec
    return np.array(spec.arrange(start.constant_rows(1)), order="C")


@dataclass(frozen=True, eq=False)
class StreamCalls:
    """Calls whose digests cover the calls before them, on which their states depend.

    Attributes:
        source: yields the calls.
        starts: the position of each stream's first call.
        digests: by position, computed on first use.
    """

    source: Source
    starts: tuple[int, ...]
    digests: dict[int, str] = field(default_factory=dict)

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield the calls at the positions in order, ``size`` at a time."""
        return self.source.stream(positions, size)

    def digest(self, position: int) -> str:
        """Return the sha256 of a call and of the calls before it in its stream."""
        start = self.starts[bisect_right(self.starts, position) - 1]
        missing = position
        while missing > start and missing - 1 not in self.digests:
            missing -= 1
        for k in range(missing, position + 1):
            before = self.digests[k - 1] if k > start else ""
            own = f"{before} {self.source.digest(k)}"
            self.digests[k] = hashlib.sha256(own.encode()).hexdigest()
        return self.digests[position]
