"""The python reader: batches that a function of the user yields."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec, cast, check_sample_shapes, show_shape
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import Python
from qtool.data.source import LABEL, Batch, Opening, row_digest
from qtool.errors import DataError, SampleError, suggest
from qtool.progress import Progress
from qtool.user_code import guarded, guarded_items, load_function


@dataclass(frozen=True, eq=False)
class PythonSource:
    """Rows of the batches that a function yields; every pass over them calls it anew.

    Attributes:
        batches: a call gives all batches, checked, in order.
        digests: of every row the function yields, from the first pass; empty for rows that hold NaN
            or infinity.
        where: the function, for messages.
    """

    batches: "Call"
    digests: tuple[str, ...]
    where: str

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` rows, in order; memory holds one batch of each kind."""
        waiting: list[Batch] = []
        for position, row in self._rows(positions):
            if row_digest(row) != self.digest(position):
                raise DataError(
                    f"{self.where}: sample {position} is another one than in the first pass; "
                    "expected the same samples in every call: fix the random seed and the order"
                )
            waiting.append(row)
            if len(waiting) == size:
                yield _concatenated(waiting)
                waiting = []
        if waiting:
            yield _concatenated(waiting)

    def digest(self, position: int) -> str:
        """Return the sha256 over the row of every input, as the model gets it."""
        if not self.digests[position]:
            raise SampleError(
                f"{self.where}: sample {position} holds NaN or Inf; expected finite numbers: "
                "repair the sample"
            )
        return self.digests[position]

    def _rows(self, positions: Sequence[int]) -> Iterator[tuple[int, Batch]]:
        """Yield the rows at the positions, in order; a step back begins another pass."""
        start = 0
        while start < len(positions):
            stop = start + 1
            while stop < len(positions) and positions[stop] >= positions[stop - 1]:
                stop += 1
            remaining = iter(positions[start:stop])
            start = stop
            following = next(remaining, None)
            at = 0
            for batch in self.batches():
                count = _rows_in(batch)
                while following is not None and following < at + count:
                    k = following - at
                    yield following, {n: v[k : k + 1] for n, v in batch.items() if n != LABEL}
                    following = next(remaining, None)
                at += count
                if following is None:
                    break
            if following is not None:
                raise DataError(
                    f"{self.where}: yielded {at} samples, {len(self.digests)} in the first pass; "
                    "expected the same in every call: fix the random seed and the order"
                )


@dataclass(frozen=True)
class Call:
    """The user's function with its arguments; a call gives checked batches.

    Attributes:
        function: the user's.
        options: those of the recipe.
        specs: the model's inputs by name.
    """

    function: Any
    options: Python
    specs: Mapping[str, InputSpec]

    def __call__(self) -> Iterator[Batch]:
        """Call the function and yield what it yields, cast to the inputs' types."""
        where = f"python: {self.options.function}"
        with guarded(where):
            batches = self.function(**self.options.args)
        if isinstance(batches, Mapping | str) or not hasattr(batches, "__iter__"):
            raise DataError(
                f"{where}: gave a {type(batches).__name__}; expected batches: yield dicts of "
                "arrays, or return a list of them"
            )
        for number, batch in enumerate(guarded_items(batches, where)):
            yield self._checked(batch, f"{where}: batch {number}")

    def _checked(self, batch: Any, where: str) -> Batch:
        if not isinstance(batch, Mapping):
            raise DataError(
                f"{where} is a {type(batch).__name__}; expected a dict from input names to arrays"
            )
        expected = [*self.specs, LABEL]
        for name in batch:
            if name not in expected:
                raise DataError(
                    f"{where} has `{name}`{suggest(str(name), expected)}; expected "
                    f"{', '.join(expected)}: leave it out"
                )
        missing = [name for name in self.specs if name not in batch]
        if missing:
            raise DataError(
                f"{where} has nothing for the model's input {self.specs[missing[0]].describe()}; "
                "expected an array for every input: yield it"
            )
        checked = {name: self._array(name, batch[name], where) for name in batch}
        counts = {name: len(values) for name, values in checked.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise DataError(
                f"{where} has {', '.join(f'{n} {c}' for n, c in counts.items())} samples; "
                "expected the same number in every array, at least one"
            )
        return checked

    def _array(self, name: str, value: Any, where: str) -> np.ndarray:
        with guarded(f"{where}: `{name}`"):
            values = np.asarray(value)
        if values.dtype.hasobject or not values.ndim:
            raise DataError(
                f"{where}: `{name}` is {type(value).__name__}, as an array {values.dtype} "
                f"{show_shape(values.shape)}; expected numbers with a leading sample axis"
            )
        if name == LABEL:
            return values
        spec = self.specs[name]
        if not spec.fits(values.shape[1:]):
            raise DataError(
                f"{where}: `{name}` has shape {show_shape(values.shape)}; expected that of the "
                f"model's input {spec.describe()}, the sample axis first"
            )
        return cast(values, spec, f"{where}: `{name}`")


class PythonReader(Reader):
    """Open the batches that a function yields; one pass counts the samples and digests them.

    The function is named module:function; the module is looked for in ``code`` first. Batches are
    dicts from input names to arrays, samples first, with `label` where there are labels.
    """

    description = "module:function that yields batches, or a mapping with it; needs --trust-code."
    options = Python
    source = "function"
    short_form = True
    paths = ()
    uses = ("code",)
    instead: ClassVar[Mapping[str, str]] = {
        "labels": "yield the labels in the batches instead, as `label`",
        "classes": "labels of batches are class numbers already: remove it",
    }

    def __call__(
        self, section: Section, inputs: Mapping[str, InputSpec], opening: Opening
    ) -> Dataset:
        """Open the batches; see :class:`qtool.data.reader.Reader`."""
        options = section.reader_options(Python)
        function = load_function(
            options.function, section.code, trusted=opening.trust_code, key="python"
        )
        where = f"python: {options.function}"
        call = Call(function, options, inputs)
        digests, labels, shapes = _first_pass(call, where, opening.progress)
        chosen, notes = section.choose(len(digests))
        for name, spec in inputs.items():
            check_sample_shapes(spec, [(f"sample {k}", shapes[k][name]) for k in chosen], where)
        return Dataset(
            tuple(f"{options.function}[{k}]" for k in chosen),
            PythonSource(call, digests, where),
            tuple(chosen),
            None if labels is None else labels[chosen],
            None,
            notes,
        )


def _first_pass(
    call: Call, where: str, progress: Progress
) -> tuple[tuple[str, ...], np.ndarray | None, list[dict[str, tuple[int, ...]]]]:
    """Run the function once: (digests, labels if there are any, shapes by input), by sample.

    How many there are is known at the end only, so progress is their number so far.
    """
    stage = f"read {call.options.function}"
    digests: list[str] = []
    labels: list[np.ndarray] = []
    labelled: set[bool] = set()
    shapes: list[dict[str, tuple[int, ...]]] = []
    for batch in call():
        rows = _rows_in(batch)
        labelled.add(LABEL in batch)
        labels += [batch.pop(LABEL)] if LABEL in batch else []
        shapes += [{name: values.shape[1:] for name, values in batch.items()}] * rows
        digests += [
            _finite_digest({n: v[k : k + 1] for n, v in batch.items()}) for k in range(rows)
        ]
        progress(stage, len(digests))
        if len(labelled) > 1 or len({values.shape[1:] for values in labels}) > 1:
            raise DataError(
                f"{where}: some batches have another `{LABEL}` than others, or none; expected "
                "labels of one shape in every batch, or in none"
            )
    if not digests:
        raise DataError(f"{where}: yielded no batch; expected at least one sample")
    progress(stage, len(digests), len(digests))
    return tuple(digests), np.concatenate(labels) if labels else None, shapes


def _finite_digest(row: Batch) -> str:
    """Return the digest of a row; "" where it holds NaN or infinity."""
    floats = (values for values in row.values() if values.dtype.kind == "f")
    return row_digest(row) if all(np.isfinite(values).all() for values in floats) else ""


def _concatenated(rows: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _rows_in(batch: Batch) -> int:
    return len(next(iter(batch.values())))
