"""The arrays reader: samples saved as .npy, .npz, or a folder of .npz files."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import numpy as np

from qtool.data.batch_axes import axes_of_data
from qtool.data.dataset import Dataset
from qtool.data.inputs import (
    InputSpec,
    cast,
    check_sample_shapes,
    fits,
    show_shape,
    unfed_hint,
)
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import Arrays
from qtool.data.readers.array_rows import Rows, rows_of, shared_rows
from qtool.data.readers.npz import Column, read_columns
from qtool.data.source import Batch, Opening, row_digest
from qtool.errors import DataError, SampleError, suggest

LABEL_NAMES = ("label", "labels", "y", "target")
"""Array names taken for the labels where the recipe names none, first match first."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Samples in arrays of one or several files.

    Attributes:
        files: for each file, model input name to its samples.
        stops: for each file, the position after its last sample.
        specs: the model's inputs by name.
        digests: by position, computed on first use.
        opened: the values of the file read last, by file number.
    """

    files: tuple[Mapping[str, Rows], ...]
    stops: tuple[int, ...]
    specs: Mapping[str, InputSpec]
    digests: dict[int, str] = field(default_factory=dict)
    opened: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` rows, in order."""
        for start in range(0, len(positions), size):
            yield self._rows(positions[start : start + size])

    def digest(self, position: int) -> str:
        """Return the sha256 over the row of every input, by input name, as the model gets it."""
        if position not in self.digests:
            self.digests[position] = row_digest(self._rows([position]))
        return self.digests[position]

    def name(self, position: int) -> str:
        """Return a row's name for messages, such as ``f.npz[12]``."""
        number, row = self._place(position)
        return f"{next(iter(self.files[number].values())).column.path.name}[{row}]"

    def _place(self, position: int) -> tuple[int, int]:
        """Return the file number and the row in it."""
        number = bisect_right(self.stops, position)
        return number, position - (self.stops[number - 1] if number else 0)

    def _values(self, number: int) -> dict[str, np.ndarray]:
        """Read one file's arrays; only those of the last file stay in memory."""
        if number not in self.opened:
            self.opened.clear()
            file = self.files[number].items()
            self.opened[number] = {name: rows.values() for name, rows in file}
        return self.opened[number]

    def _rows(self, positions: Sequence[int]) -> Batch:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.specs}
        places = [self._place(position) for position in positions]
        start = 0
        while start < len(places):
            number = places[start][0]
            stop = start
            while stop < len(places) and places[stop][0] == number:
                stop += 1
            rows = [row for _, row in places[start:stop]]
            for name, values in self._values(number).items():
                one = self.files[number][name].count is None  # for all samples of the file
                parts[name].append(
                    np.repeat(values[None], len(rows), axis=0) if one else np.asarray(values[rows])
                )
            start = stop
        return {name: self._fit(name, rows, positions) for name, rows in parts.items()}

    def _fit(self, name: str, parts: list[np.ndarray], positions: Sequence[int]) -> np.ndarray:
        """Join, cast and check one input's rows."""
        spec = self.specs[name]
        rows = cast(np.concatenate(parts), spec, self.name(positions[0]))
        if rows.dtype.kind == "f":
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                bad = positions[int(np.argmin(finite))]
                raise SampleError(
                    f"{self.name(bad)}: the values for `{name}` hold NaN or Inf (as {rows.dtype}); "
                    "expected finite numbers: repair or remove the sample"
                )
        return rows


class ArrayReader(Reader):
    """Open saved arrays for the model's inputs.

    A .npy or .npz file, or a folder of .npz files with one batch or one call each; the samples lie
    along the batch axis of the input. Arrays feed the inputs of the same name; a sole array feeds
    a sole input. With ``loop`` a file is a stream of calls.
    """

    description = "A .npy or .npz file, or a folder of .npz files; or a mapping with its path."
    options = Arrays
    source = "path"
    short_form = True
    paths = ("path",)
    uses = ("loop",)
    instead: ClassVar[Mapping[str, str]] = {
        "labels": "name the label array instead: `arrays: {path: ..., label: y}`",
        "classes": "labels of arrays are class numbers already: remove it",
    }

    def __call__(
        self, section: Section, inputs: Mapping[str, InputSpec], opening: Opening
    ) -> Dataset:
        """Open the arrays; see :class:`qtool.data.reader.Reader`."""
        options = section.reader_options(Arrays)
        files = [read_columns(path) for path in _files(Path(options.path))]
        mapping, label, notes = _match(options, files[0], inputs)
        rows = [_rows(columns, mapping, inputs) for columns in files]
        counts = [_count(*pair, mapping, label) for pair in zip(files, rows, strict=True)]
        source = ArraySource(tuple(rows), tuple(accumulate(counts)), inputs)
        chosen, more = section.choose(source.stops[-1])
        used = [rows[k] for k in sorted({bisect_right(source.stops, k) for k in chosen})]
        for name, spec in inputs.items():
            shapes = [(file[name].column.path.name, file[name].sample) for file in used]
            check_sample_shapes(spec, shapes, options.path)
        labels = None if label is None else _labels([columns[label] for columns in files])[chosen]
        return Dataset(
            tuple(source.name(position) for position in chosen),
            source,
            tuple(chosen),
            labels,
            None,
            notes + _unscaled(mapping, files[0], inputs) + more,
            starts=_starts(counts),
            guesses={"arrays": _resolved(options, mapping, label)},
        )

    def batch_axes(
        self, section: Section, inputs: Mapping[str, InputSpec]
    ) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
        """Choose batch axes by the arrays of the first file; see :class:`Reader`."""
        options = section.reader_options(Arrays)
        columns = read_columns(_files(Path(options.path))[0])
        mapping = _match(options, columns, inputs)[0]
        shapes = {name: columns[array].shape for name, array in mapping.items()}
        return axes_of_data(shapes, inputs)

    def first_file(
        self, section: Section, inputs: Mapping[str, InputSpec]
    ) -> dict[str, np.ndarray] | None:
        """Return the arrays of the first file of a folder; see :class:`Reader`.

        None where the file has a label for each sample, or arrays that hold whole inputs.
        """
        options = section.reader_options(Arrays)
        files = _files(Path(options.path))
        if len(files) < 2:
            return None
        columns = read_columns(files[0])
        mapping, label, _ = _match(options, columns, inputs)
        if label is not None and columns[label].shape[:1] > (1,):
            return None
        arrays = {name: columns[array] for name, array in mapping.items()}
        if any(not fits(inputs[name].shape, each.shape) for name, each in arrays.items()):
            return None
        return {name: cast(each.values(), inputs[name], each.name) for name, each in arrays.items()}


def _resolved(options: Arrays, mapping: Mapping[str, str], label: str | None) -> Arrays:
    """Return the options with the names of all arrays; the one of a .npy file has none."""
    inputs = {name: array for name, array in mapping.items() if array not in ("", name)}
    return options.model_copy(update={"inputs": inputs, "label": label})


def _starts(counts: Sequence[int]) -> tuple[int, ...]:
    """Return the position of the first call of each stream: of each file, if any has several."""
    if max(counts) == 1:
        return (0,)
    return (0, *accumulate(counts[:-1]))


def _labels(columns: Sequence[Column]) -> np.ndarray:
    """Concatenate the labels of all files."""
    shapes = {column.shape[1:] for column in columns}
    if len(shapes) > 1:
        raise DataError(
            f"{columns[0].path.parent}: the labels of one sample have the shapes {sorted(shapes)}; "
            "expected the same in every file"
        )
    return np.concatenate([np.atleast_1d(np.asarray(column.values())) for column in columns])


def _unscaled(
    mapping: Mapping[str, str], columns: Mapping[str, Column], inputs: Mapping[str, InputSpec]
) -> tuple[str, ...]:
    """Return notes about whole numbers that feed a float input, where nothing scales them."""
    return tuple(
        f"array `{array}` is {columns[array].dtype}; its values feed the {inputs[name].dtype} "
        f"input `{name}` as they are, unscaled"
        for name, array in mapping.items()
        if columns[array].dtype.kind in "iub" and inputs[name].dtype.startswith("float")
    )


def _files(path: Path) -> list[Path]:
    """Return the file itself, or the .npz files of a folder, sorted."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.npz") if not file.name.startswith("."))
        if not files:
            raise DataError(f"{path}: the folder holds no .npz file; expected one batch per file")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; correct `arrays`")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path}: expected a .npy or .npz file, or a folder of .npz files")
    return [path]


def _listing(columns: Mapping[str, Column]) -> str:
    return ", ".join(
        f"{name or '(the array)'} {column.dtype} {show_shape(column.shape)}"
        for name, column in columns.items()
    )


def _match(
    options: Arrays, columns: Mapping[str, Column], inputs: Mapping[str, InputSpec]
) -> tuple[dict[str, str], str | None, tuple[str, ...]]:
    """Match arrays with inputs: (input -> array, the array of labels, notes)."""
    _check_names(options, columns, inputs)
    mapping = {name: options.inputs.get(name, name) for name in inputs}
    mapping = {name: array for name, array in mapping.items() if array in columns}
    taken = set(mapping.values())
    notes: list[str] = []
    label = options.label
    if label is None:
        label = next((name for name in LABEL_NAMES if name in columns and name not in taken), None)
        if label is not None:
            notes.append(f"array `{label}` taken for the labels")
    missing = [name for name in inputs if name not in mapping]
    spare = [
        name
        for name, column in columns.items()
        if name not in {*taken, label} and (column.dtype.kind == "f" or column.member is None)
    ]
    if missing and not len(missing) == len(spare) == 1:
        described = ", ".join(inputs[name].describe() for name in missing)
        raise DataError(
            f"{options.path}: no array for the model's input {described}; found "
            f"{_listing(columns)}: set `arrays: {{path: .., inputs: {{{missing[0]}: ARRAY}}}}`"
            f"{unfed_hint(inputs[name] for name in missing)}"
        )
    for name, array in zip(missing, spare, strict=False):
        mapping[name] = array
        shown = f"array `{array}`" if array else f"the array of {options.path}"
        notes.append(f"{shown} taken for the input `{name}`")
    return mapping, label, tuple(notes)


def _check_names(
    options: Arrays, columns: Mapping[str, Column], inputs: Mapping[str, InputSpec]
) -> None:
    """Refuse names in the recipe that the model or the file does not have."""
    for name in options.inputs:
        if name not in inputs:
            raise DataError(
                f"arrays.inputs names `{name}`, but the model's inputs are {', '.join(inputs)}"
                f"{suggest(name, inputs)}"
            )
    for array in [*options.inputs.values(), options.label]:
        if array is not None and array not in columns:
            raise DataError(
                f"{options.path}: holds no array `{array}`{suggest(array, columns)}; found "
                f"{_listing(columns)}"
            )


def _rows(
    columns: Mapping[str, Column], mapping: Mapping[str, str], inputs: Mapping[str, InputSpec]
) -> dict[str, Rows]:
    """Return one file's arrays as samples of the model's inputs."""
    return shared_rows(
        {name: rows_of(_column(columns, array), inputs[name]) for name, array in mapping.items()},
        inputs,
    )


def _column(columns: Mapping[str, Column], array: str) -> Column:
    if array not in columns:
        path = next(iter(columns.values())).path if columns else Path()
        raise DataError(
            f"{path}: holds no array `{array}`; expected the same arrays as in the folder's "
            f"first file, found {_listing(columns)}: save it again, or move it elsewhere"
        )
    return columns[array]


def _count(
    columns: Mapping[str, Column],
    rows: Mapping[str, Rows],
    mapping: Mapping[str, str],
    label: str | None,
) -> int:
    """Check that one file's arrays have the same number of samples; return it."""
    counts = {mapping[name]: each.count for name, each in rows.items() if each.count is not None}
    if label is not None:
        shape = _column(columns, label).shape
        counts[label] = shape[0] if shape else 1
    path = next(iter(columns.values())).path
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{array or 'the array'} {count}" for array, count in counts.items())
        raise DataError(
            f"{path}: the arrays have different numbers of rows ({lengths}); expected one row per "
            "sample in each"
        )
    count = next(iter(counts.values()), 1)
    if count == 0:
        raise DataError(f"{path}: the arrays have no rows; expected at least one sample")
    return count
