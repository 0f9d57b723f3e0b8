"""Find out what a folder of data holds, and how its parts divide into calibration and evaluation.

Names such as train and test decide first; without them, parts of one form do: the larger one
calibrates. `qtool init` and every command that takes ``--data`` divide by this rule.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

from qtool.data.readers.decode import SUFFIXES
from qtool.data.readers.npz import read_columns
from qtool.data.readers.wav import RECORDINGS
from qtool.errors import DataError

TRAIN_WORDS = ("train", "training", "calib", "calibration")
# In this order: the test part evaluates, the validation part only where there is no other.
TEST_WORDS = ("test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev")
ARRAYS, TABLES, LABELS = (".npz", ".npy"), (".tsv", ".csv", ".jsonl"), (".csv", ".tsv", ".json")
VOCABULARY = ("tokenizer.json", "vocab.txt", "vocabulary.txt")
# Entries of a folder that are looked at, the first by name.
LOOK = 64
ONE_PART = "one part: every second sample calibrates, the others evaluate"
# Characters of a table that are searched for names of images.
SEARCHED = 10_000_000


@dataclass(frozen=True)
class Source:
    """Data that could feed a model, as sections of a recipe.

    Attributes:
        reader: the key that names the reader, such as "images".
        calibrate: value of the reader's key for calibration.
        evaluate: the same for evaluation; None: every second sample of the same data.
        labels: label files of calibration and evaluation; None where there is none.
        reason: how the parts were divided, for a comment.
        classes: all classes, where the parts have different ones; sorted by themselves, a part
            that lacks a class would number those behind it otherwise.
    """

    reader: str
    calibrate: Any
    evaluate: Any
    labels: tuple[Path | None, Path | None] = (None, None)
    reason: str = ""
    classes: tuple[str, ...] = ()

    def sections(self, count: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the sections ``calibrate`` and ``evaluate`` of a recipe, without preprocessing."""
        values = (self.calibrate, self.evaluate or self.calibrate)
        first, second = (
            {self.reader: value} | ({} if labels is None else {"labels": str(labels)})
            for value, labels in zip(values, self.labels, strict=True)
        )
        if self.classes:
            first["classes"] = second["classes"] = list(self.classes)
        if self.evaluate is None:
            first["take"], second["take"] = ({"every": 2}, {"every": 2, "offset": 1})
        return (first if count is None else {**first, "count": count}), second


def data_sources(data: Path) -> list[Source]:
    """Return what the path holds, most likely first.

    Args:
        data: a file, or a folder of images, class folders, arrays, tables or recordings.

    Raises:
        DataError: nothing is there, or nothing that a reader reads.
    """
    if not data.exists():
        raise DataError(f'nothing at "{data}"; expected a file or folder of data for the model')
    finders = (_images, _arrays, _recordings, _texts)
    readable = [source for finder in finders for source in finder(data)]
    if not readable:
        listed = ", ".join(sorted({p.suffix or p.name for p in _entries(data)})[:8]) or "nothing"
        raise DataError(
            f'"{data}" holds {listed}; expected images, class folders of images, .npz or .npy '
            "arrays, .wav recordings, or a .tsv or .csv table with its vocabulary"
        )
    return readable


def source_for(reader: str, data: Path) -> Source | None:
    """Return what the path holds for a reader whose settings a recipe has; None: nothing.

    Args:
        reader: "text" or "wav"; tables need no vocabulary beside them here.
        data: a file or a folder.
    """
    finder = {"text": _tables, "wav": _recordings}[reader]
    return next(finder(data), None)


def _entries(folder: Path, suffixes: str | tuple[str, ...] = "") -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted; of a file, itself.

    Args:
        folder: a folder or a file.
        suffixes: endings of the names, in any case.
    """
    if folder.is_file():
        return [folder] if folder.name.lower().endswith(suffixes) else []
    return [folder / n for n in sorted(_names(folder)) if n.lower().endswith(suffixes)]


def _names(folder: Path) -> Iterator[str]:
    return (name for name in os.listdir(folder) if not name.startswith("."))


def _word(path: Path) -> tuple[str, str]:
    """Return the first word about a part in a name, and the name without it: fsdd_train."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    word = next((w for w in words if w in (*TRAIN_WORDS, *TEST_WORDS)), "")
    return word, "_".join(w for w in words if w and w != word)


def _divide(parts: Iterable[Path], size: Callable[[Path], int]) -> tuple[Path, Path | None, str]:
    """Choose the parts that calibrate and evaluate among parts of one form.

    Args:
        parts: at least one.
        size: number of samples of a part.

    Returns:
        Calibration, evaluation (None: the same part), and the reason.
    """
    parts = list(parts)
    rank = {word: k for k, word in enumerate(TEST_WORDS)}
    train = [p for p in parts if _word(p)[0] in TRAIN_WORDS]
    test = sorted((p for p in parts if _word(p)[0] in rank), key=lambda p: rank[_word(p)[0]])
    if train and test:
        return train[0], test[0], f"by the names {train[0].name} and {test[0].name}"
    if len(parts) == 1:
        return parts[0], None, ONE_PART
    largest, *rest = sorted(parts, key=lambda p: (-size(p), p.name))
    if test and test[0] != largest:
        return largest, test[0], f"by the name {test[0].name}; {largest.name} is the largest part"
    return largest, rest[0], f"by size: {largest.name} holds most samples, {rest[0].name} the next"


def _images(data: Path) -> Iterator[Source]:
    """Yield a folder of images, of class folders, or of parts that hold either."""
    if data.is_file():
        return
    if _has_images(data):
        parts = [data]
    else:
        parts = [p for p in _entries(data) if p.is_dir() and _is_tree(p)]
        trees = [p for p in parts if not _has_images(p)]
        if trees:
            parts = trees
        elif len(parts) > 1 and not _is_split(parts):
            parts = [data]  # class folders
    if not parts:
        return
    calibrate, evaluate, reason = _divide(parts, lambda folder: _count(folder, SUFFIXES))
    yield Source(
        "images",
        str(calibrate),
        None if evaluate is None else str(evaluate),
        (_label_file(calibrate, data), _label_file(evaluate or calibrate, data)),
        reason,
        _different_classes(calibrate, evaluate or calibrate),
    )


def _different_classes(*parts: Path) -> tuple[str, ...]:
    """Return the class folders of all parts, where they differ; else none."""
    if any(_has_images(part) for part in parts):
        return ()
    each = [{path.name for path in _entries(part) if path.is_dir()} for part in parts]
    return () if all(names == each[0] for names in each) else tuple(sorted(set().union(*each)))


def _is_split(folders: list[Path]) -> bool:
    """Return whether flat folders of images are parts of a data set, by their names."""
    words = {_word(folder)[0] for folder in folders}
    return "" not in words or bool(words & {*TRAIN_WORDS} and words & {*TEST_WORDS})


def _has_images(folder: Path) -> bool:
    """Return whether images lie directly in a folder."""
    return any(p.suffix.lower() in SUFFIXES for p in _some(folder))


def _is_tree(folder: Path) -> bool:
    """Return whether a folder, or one below it, holds images."""
    return _has_images(folder) or any(_has_images(p) for p in _some(folder) if p.is_dir())


def _some(folder: Path) -> Iterator[Path]:
    """Yield a few entries of a folder, the first by name."""
    yield from (folder / name for name in nsmallest(LOOK, _names(folder)))


def _count(folder: Path, suffixes: tuple[str, ...]) -> int:
    return sum(name.lower().endswith(suffixes) for *_, names in os.walk(folder) for name in names)


def _label_file(images: Path, data: Path) -> Path | None:
    """Return a table that names the images, where no class folders give labels."""
    if not _has_images(images):
        return None
    names = {p.name for p in _some(images)} | {p.stem for p in _some(images)}
    for folder in dict.fromkeys((images, data)):
        for path in _entries(folder, LABELS):
            with path.open(errors="replace") as file:
                words = set(re.split(r'[\s,;"]+', file.read(SEARCHED)))
            if words & names:
                return path
    return None


def _arrays(data: Path) -> Iterator[Source]:
    """Yield arrays: files with the same arrays are parts; three without names are batches."""
    files = _entries(data, ARRAYS)
    if data.is_file():
        yield from (Source("arrays", str(file), None, reason=ONE_PART) for file in files)
        return
    forms: dict[tuple[Any, ...], list[Path]] = {}
    for path in files:
        if form := _form(path):
            forms.setdefault(form, []).append(path)
    if files and not forms:
        read_columns(files[0])  # raises what is wrong with it
    for parts in sorted(forms.values(), key=lambda group: -sum(map(_rows, group))):
        is_batch = parts[0].suffix.lower() == ".npz"  # the reader takes no folder of .npy files
        if is_batch and len(parts) > 2 and not _is_split(parts):
            yield Source("arrays", str(data), None, reason=f"{len(parts)} files, a batch in each")
            continue
        calibrate, evaluate, reason = _divide(parts, _rows)
        second = None if evaluate is None else str(evaluate)
        yield Source("arrays", str(calibrate), second, reason=reason)


def _form(path: Path) -> tuple[Any, ...]:
    """Return names, types and shapes of a file's arrays without the sample axis; () if damaged."""
    try:
        columns = read_columns(path)
    except DataError:
        return ()
    return tuple(
        (name, columns[name].dtype.kind, columns[name].shape[1:]) for name in sorted(columns)
    )


def _rows(path: Path) -> int:
    """Return the largest first axis of a file's arrays."""
    return max(
        (column.shape[0] for column in read_columns(path).values() if column.shape), default=0
    )


def _recordings(data: Path) -> Iterator[Source]:
    """Yield a folder of recordings, or of class folders of them."""
    if data.is_file():
        return

    def holds(folder: Path) -> bool:
        return any(p.suffix.lower() in RECORDINGS.suffixes for p in _some(folder))

    inner = [p for p in _some(data) if p.is_dir() and holds(p)]
    if holds(data) or (inner and not _is_split(inner)):
        yield Source("wav", {"path": str(data)}, None, reason="every second recording calibrates")
    elif inner:
        calibrate, evaluate, reason = _divide(inner, lambda p: _count(p, RECORDINGS.suffixes))
        second = None if evaluate is None else {"path": str(evaluate)}
        yield Source("wav", {"path": str(calibrate)}, second, reason=reason)


def _texts(data: Path) -> Iterator[Source]:
    """Yield tables of sentences, where a vocabulary lies beside them."""
    folder = data.parent if data.is_file() else data
    vocabulary = next((folder / n for n in VOCABULARY if (folder / n).is_file()), None)
    if vocabulary is None:
        return
    for source in _tables(data):
        first, second = (
            None if part is None else {**part, "tokenizer": str(vocabulary)}
            for part in (source.calibrate, source.evaluate)
        )
        yield replace(source, calibrate=first, evaluate=second)


def _tables(data: Path) -> Iterator[Source]:
    """Yield tables of sentences, without the options of the reader."""
    if tables := _entries(data, TABLES):
        calibrate, evaluate, reason = _divide(tables, lambda p: p.stat().st_size)
        second = None if evaluate is None else {"path": str(evaluate)}
        yield Source("text", {"path": str(calibrate)}, second, reason=reason)
