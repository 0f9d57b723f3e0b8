"""Tables of sentences: .tsv, .csv and .jsonl files, row by row."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.data.reader_options import Text
from qtool.errors import DataError, suggest

TEXT_NAMES = ("text", "sentence")
"""Names of the column of sentences where the recipe names none, first match first."""
LABEL_NAMES = ("label", "labels", "class", "target", "y")
"""Names of the column of labels where the recipe names none, first match first."""
SUFFIXES = (".tsv", ".csv", ".jsonl")

Row = Mapping[str | int, Any]


@dataclass(frozen=True)
class Table:
    """The rows of a file of sentences.

    Attributes:
        lines: the line of each row in the file, from 1.
        texts: the sentence of each row.
        pairs: the second sentence of each row, or None.
        labels: the label of each row as it is written, or None.
        notes: assumptions, for the report.
        columns: the column of each role, named or assumed.
    """

    lines: tuple[int, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]
    columns: Mapping[str, str | int]


def read_table(options: Text) -> Table:
    """Read the columns that a recipe names; .tsv has no quotes, .csv has the usual ones.

    Args:
        options: name the file and its columns.

    Raises:
        DataError: the file is missing, not UTF-8, ragged, or lacks a column.
    """
    path = Path(options.path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: expected a {', '.join(SUFFIXES)} file; correct `text: {{path}}`")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 ({error.reason}); expected UTF-8: convert it"
        ) from error
    rows, available, named = _rows(path, content, options)
    columns, notes = _columns(options, available, named)
    cells: dict[str, list[str]] = {role: [] for role in columns}
    lines = []
    for line, row in rows:
        lines.append(line)
        for role, column in columns.items():
            cells[role].append(_cell(path, line, row, column, role))
    if not lines:
        raise DataError(f"{path}: holds no row; expected one sentence in each line")
    texts = {role: tuple(column_cells) for role, column_cells in cells.items()}
    return Table(tuple(lines), texts["text"], texts.get("pair"), texts.get("label"), notes, columns)


def _rows(
    path: Path, content: str, options: Text
) -> tuple[Iterator[tuple[int, Row]], tuple[str | int, ...], bool]:
    """Return pairs (line, cells by column), the columns, and whether columns have names."""
    if path.suffix.lower() == ".jsonl":
        objects = list(_objects(path, content))
        return iter(objects), tuple(objects[0][1]) if objects else (), True
    split = _tsv if path.suffix.lower() == ".tsv" else _csv
    records = list(split(path, content))
    if not records:
        return iter(()), (), False
    first = [cell.strip() for cell in records[0][1]]
    requested = [c for c in (options.text, options.pair, options.label) if c is not None]
    kinds = {type(column) for column in requested}
    if len(kinds) > 1:
        raise DataError(
            f"{path}: the columns {', '.join(map(repr, requested))} mix names and numbers; "
            "expected names for a file with a header, numbers from 0 for one without"
        )
    named = str in kinds or (not kinds and any(cell.lower() in TEXT_NAMES for cell in first))
    keys: tuple[str | int, ...] = tuple(first) if named else tuple(range(len(first)))
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}:{records[0][0]}: two columns have one name; expected {first}")
    for line, cells in records:
        if len(cells) != len(keys):
            raise DataError(
                f"{path}:{line}: found {len(cells)} columns, expected {len(keys)} as in line "
                f"{records[0][0]}: correct the line"
            )
    body = records[1:] if named else records
    return ((line, dict(zip(keys, cells, strict=True))) for line, cells in body), keys, named


def _tsv(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r").split("\t")


def _csv(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    before = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield before + 1, cells
            before = reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{path}:{before + 1}: not CSV ({error}); expected cells with commas between, quotes "
            'inside quotes doubled (""): correct the line'
        ) from error


def _objects(path: Path, content: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}); expected one object in each line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{number}: found a {type(row).__name__}, expected an object in each line"
            )
        yield number, row


def _columns(
    options: Text, available: tuple[str | int, ...], named: bool
) -> tuple[dict[str, str | int], tuple[str, ...]]:
    """Match roles with columns: (role -> column, notes about assumptions)."""
    columns: dict[str, str | int] = {}
    notes = []
    requested = {"text": options.text, "pair": options.pair, "label": options.label}
    for role, column in requested.items():
        if column is not None:
            columns[role] = column
    guesses: dict[str, tuple[str | int, ...]] = {
        "text": TEXT_NAMES if named else (0,),
        "label": LABEL_NAMES if named else (1,),
    }
    if not named and len(available) != 2:
        guesses.pop("label")
    for role, names in guesses.items():
        lower = {str(key).lower() if named else key: key for key in available}
        match = next((lower[name] for name in names if name in lower), None)
        if role not in columns and match is not None and match not in columns.values():
            columns[role] = match
            notes.append(f"column {match!r} of {options.path} taken for the {role}")
    listed = ", ".join(map(repr, available))
    for role, column in columns.items():
        if available and column not in available:
            raise DataError(
                f"{options.path}: there is no column {column!r}{suggest(str(column), available)}; "
                f"expected one of {listed}: correct `text: {{{role}: ..}}`"
            )
    if available and "text" not in columns:
        raise DataError(
            f"{options.path}: no column is called {' or '.join(TEXT_NAMES)}; expected one "
            f"of {listed}: set `text: {{text: COLUMN}}`"
        )
    return {"text": 0, **columns}, tuple(notes)


def _cell(path: Path, line: int, row: Row, column: str | int, role: str) -> str:
    """Return one cell's text; class numbers of JSON become text too."""
    if column not in row:
        raise DataError(f"{path}:{line}: has no {column!r}; expected it in every line: add it")
    cell = row[column]
    number = role == "label" and isinstance(cell, int) and not isinstance(cell, bool)
    if not isinstance(cell, str) and not number:
        raise DataError(
            f"{path}:{line}: {column!r} is {cell!r}; expected "
            + ("a class number or name" if role == "label" else "text")
        )
    text = str(cell).strip()
    if not text:
        raise DataError(f"{path}:{line}: {column!r} is empty; expected text: remove the line")
    return text
