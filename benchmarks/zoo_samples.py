"""Random samples of the zoo's models, and how a file is run on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.timing import session
from benchmarks.zoo_models import Inputs

OPEN = 14  # the size of a dimension that a model leaves open
# Exponents of ten of the loudness of a sound: 40 dB between the softest and the loudest.
LOUDNESS = (-2.0, 0.0)

Arrays = dict[str, np.ndarray]


def data(inputs: Inputs, count: int) -> Arrays:
    """Generate random samples: normal floats, sounds of any loudness, uniform integers.

    An input of rank 0 gets one number, and so does an input with a fixed first size beside one
    whose first size is open: all samples share it.
    """
    rng = np.random.default_rng(3)
    arrays = {}
    for name, (shape, dtype, high) in inputs.items():
        sizes = [d if isinstance(d, int) and d > 0 else OPEN for d in shape]
        size = sizes if is_shared(inputs, name) else [count, *sizes[1:]]
        if dtype == "sound":
            loudness = 10 ** rng.uniform(*LOUDNESS, (count, *[1] * len(sizes[1:])))
            arrays[name] = (loudness * rng.standard_normal(size)).astype(np.float32)
        elif dtype.startswith("float"):
            arrays[name] = np.asarray(rng.standard_normal(size)).astype(dtype)
        else:
            arrays[name] = np.asarray(rng.integers(0, high, size)).astype(dtype)
    return arrays


def is_shared(inputs: Inputs, name: str) -> bool:
    """Return whether all samples share the value of an input."""
    shape, first = inputs[name][0], next(iter(inputs.values()))[0]
    return not shape or (is_open(first[0]) and not is_open(shape[0]))


def is_open(size: int | str) -> bool:
    """Return whether a size is a name, or -1."""
    return not isinstance(size, int) or size < 0


@dataclass(frozen=True)
class Samples:
    """Samples of a model.

    Attributes:
        arrays: by input name, samples first; states are not among them.
        batch: samples of a call.
        shared: inputs that are fed as they are in every call.
        loop: output -> the input that reads it in the next call.
        states: input -> the array that the first call reads.
    """

    arrays: Arrays
    batch: int
    shared: frozenset[str] = frozenset()
    loop: Mapping[str, str] = field(default_factory=dict)
    states: Arrays = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return next(len(v) for name, v in self.arrays.items() if name not in self.shared)

    def calls(self, batch: int | None = None) -> Iterator[Arrays]:
        """Yield the inputs of each call, without states."""
        step = batch or self.batch
        for start in range(0, self.count, step):
            yield {
                name: v if name in self.shared else v[start : start + step]
                for name, v in self.arrays.items()
            }


def samples_of(inputs: Inputs, count: int, loop: Mapping[str, str]) -> Samples:
    """Return random samples for a model's inputs.

    Args:
        inputs: of the model; the first one says how many samples a call has.
        count: samples.
        loop: output -> the state that reads it; states begin with zeros.
    """
    first = next(iter(inputs.values()))[0][0]
    fed = {name: entry for name, entry in inputs.items() if name not in loop.values()}
    shapes = {name: [int(d) for d in inputs[name][0]] for name in loop.values()}
    return Samples(
        arrays=data(fed, count),
        batch=first if isinstance(first, int) and first > 0 else 8,
        shared=frozenset(name for name in fed if is_shared(fed, name)),
        loop=loop,
        states={name: np.zeros(shape, np.float32) for name, shape in shapes.items()},
    )


def run(path: Path, samples: Samples, batch: int | None = None) -> Iterator[tuple[Arrays, Arrays]]:
    """Run a file; yield inputs and outputs of each call, its own states fed back.

    Args:
        path: an ONNX file.
        samples: to feed.
        batch: samples of a call, instead of the samples' own.
    """
    loaded = session(path)
    names = [value.name for value in loaded.get_outputs()]
    states = dict(samples.states)
    for call in samples.calls(batch):
        feeds = {**call, **states}
        outputs = dict(zip(names, loaded.run(None, feeds), strict=True))
        yield feeds, outputs
        states = {state: outputs[name] for name, state in samples.loop.items()}


def first_output(path: Path, samples: Samples) -> np.ndarray:
    """Return the first output of a file for all samples, as float32."""
    parts = [next(iter(outputs.values())) for _, outputs in run(path, samples)]
    return np.concatenate(parts).astype(np.float32)
