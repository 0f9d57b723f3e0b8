"""The origin of a dataset's samples, and the batches that it yields."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qtool.data.inputs import InputSpec, constant_arrays
from qtool.progress import Progress, silent

Batch = dict[str, np.ndarray]
"""Model input names (and "label" where there are labels) to arrays.

Readers yield a leading sample axis; a dataset yields the arrays as the model reads them.
"""

LABEL = "label"


@dataclass(frozen=True)
class Opening:
    """Settings for opening a dataset that are not the recipe's.

    Attributes:
        workers: how many threads decode images; 0 decodes in the thread that iterates over the
            batches, None is one per usable core.
        trust_code: whether the user allowed the recipe to run code of its own.
        progress: called while samples of unknown number are counted.
    """

    workers: int | None = None
    trust_code: bool = False
    progress: Progress = silent


class Source(Protocol):
    """The origin of a dataset's samples; positions count the source's own samples."""

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield the model inputs at the positions in order, ``size`` samples at a time."""

    def digest(self, position: int) -> str:
        """Return the sha256 of one sample's content; it is computed once."""


def row_digest(row: Batch) -> str:
    """Compute the sha256 over one row of every input, by input name, as the model gets it."""
    total = hashlib.sha256()
    for name, values in sorted(row.items()):
        total.update(f"{name} {values.dtype} {values.shape}".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


def per_sample(output: Any, valid: int, size: int | None) -> Any:
    """Return an output of one call with a leading sample axis.

    The output of a call of one sample is that sample's as a whole where its first axis counts
    something else, such as time steps, or where it is a single number.

    Args:
        output: an array or tensor.
        valid: samples of the call; the rest repeats the last one.
        size: samples that the model computes in any call; None where it takes any number.
    """
    if size == 1 and (output.ndim == 0 or len(output) != 1):
        return output[None]
    return output[:valid]


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """Samples arranged as the model reads them, with its constant inputs.

    Attributes:
        source: yields samples first, without the constant inputs.
        specs: the inputs that the source feeds, and the constant ones.
    """

    source: Source
    specs: Mapping[str, InputSpec]

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield the model inputs at the positions in order, ``size`` samples at a time."""
        constant = {n: spec for n, spec in self.specs.items() if spec.constant is not None}
        with closing(self.source.stream(positions, size)) as stream:  # type: ignore[type-var]
            for rows in stream:
                count = len(next(iter(rows.values())))
                rows = rows | {name: spec.constant_rows(count) for name, spec in constant.items()}
                yield {name: self.specs[name].arrange(array) for name, array in rows.items()}

    def digest(self, position: int) -> str:
        """Return the sha256 of one sample's content, constant inputs included."""
        own, constants = self.source.digest(position), constant_arrays(self.specs, 1)
        for name, array in constants.items():
            own = hashlib.sha256(f"{own} {name}".encode() + array.tobytes()).hexdigest()
        return own
