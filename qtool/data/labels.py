"""Label files, folders of label maps, and the numbering of class names."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from qtool.data.class_names import ordered_classes
from qtool.data.preprocess import Preprocess
from qtool.data.readers.decode import decode_map
from qtool.errors import DataError

SHAPE = 'two columns `image,label` (CSV or TSV), or JSON {"image": label}'


def read_labels(
    path: Path, names: Sequence[str], order: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None, tuple[str, ...]]:
    """Read the label of every image from a CSV, TSV or JSON file.

    An image is looked up by its path below the images folder, its file name, its file name without
    suffix, or its folder, in this order. Labels are class numbers, or class names, which are
    numbered in sorted order.

    Args:
        path: the file.
        names: the images that need a label.
        order: class names in the model's order; absent: sorted.

    Returns:
        Labels int64 [len(names)], the class names where the file has names, and notes.

    Raises:
        DataError: the file cannot be read, or an image has no label.
    """
    table = _read(path)
    texts = [_find(table, name) for name in names]
    missing = [name for name, text in zip(names, texts, strict=True) if text is None]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(names)} images have no label (first: {missing[0]}); "
            "expected one line per image: add them"
        )
    return number_labels([str(text) for text in texts], list(table.values()), str(path), order)


def read_maps(folder: Path, names: Sequence[str], preprocess: Preprocess) -> np.ndarray:
    """Read the label map of every image: the file of its name in a folder, as PNG.

    Args:
        folder: holds a map for each image, at its path below the images folder.
        names: the images that need a map.
        preprocess: that of the images; maps are resized and cropped alike.

    Returns:
        Class numbers uint8 or uint16 [len(names), H, W].

    Raises:
        DataError: an image has no map, a map cannot be read, or they differ in size.
    """
    maps = []
    for name in names:
        path = (folder / name).with_suffix(".png")
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; expected the label map of the image {name}: add it"
            )
        maps.append(decode_map(path, preprocess))
        if maps[-1].shape != maps[0].shape:
            raise DataError(
                f"{path}: the label map is {maps[-1].shape[0]}x{maps[-1].shape[1]}, those before "
                f"it are {maps[0].shape[0]}x{maps[0].shape[1]}; expected one size: set "
                "`preprocess: {resize: .., crop: ..}`"
            )
    return np.stack(maps)


def number_labels(
    texts: Sequence[str], every: Sequence[str], where: str, order: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None, tuple[str, ...]]:
    """Convert label texts to class numbers: numbers stay, names are numbered in sorted order.

    Args:
        texts: the samples' labels.
        every: all labels of the file; they are numbers, or else its class names.
        where: the file, for the note.
        order: class names in the model's order; absent: sorted.

    Returns:
        Labels int64 [len(texts)], the class names where there are names, and notes.

    Raises:
        DataError: a name is not in the order.
    """
    if order is None and all(_is_number(text) for text in every):
        return np.array([int(text) for text in texts], np.int64), None, ()
    classes = ordered_classes(every, order, where)
    index = {name: number for number, name in enumerate(classes)}
    how = "in sorted order" if order is None else "as in `classes`"
    note = f"{where}: {len(classes)} class names, numbered {how}"
    return np.array([index[text] for text in texts], np.int64), classes, (note,)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 19  # fits int64


def _find(table: Mapping[str, str], name: str) -> str | None:
    """Return the label text of an image, or None."""
    place = PurePosixPath(name)
    for key in (name, place.name, place.stem, place.parent.as_posix(), place.parent.name):
        if key in table:
            return table[key]
    return None


def _read(path: Path) -> dict[str, str]:
    """Read the file as a table from image to label text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _from_json(path, json.loads(text))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as labels ({error}); expected {SHAPE}") from error
    return _from_lines(path, text)


def _from_json(path: Path, table: object) -> dict[str, str]:
    if not isinstance(table, dict):
        raise DataError(f"{path}: found a JSON {type(table).__name__}, expected {SHAPE}")
    for image, label in table.items():
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise DataError(
                f"{path}: the label of {image!r} is {label!r}; expected a class number or name"
            )
    return {image: str(label) for image, label in table.items()}


def _from_lines(path: Path, text: str) -> dict[str, str]:
    separator = "\t" if path.suffix.lower() in (".tsv", ".txt") else ","
    table: dict[str, str] = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=separator), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path}:{number}: found {row}, expected {SHAPE}")
        if number == 1 and cells[1].lower() in ("label", "class", "target", "y"):
            continue
        image = cells[0].removeprefix("./")
        if table.get(image, cells[1]) != cells[1]:
            raise DataError(
                f"{path}:{number}: {image} has the labels {table[image]} and {cells[1]}; "
                "expected one: remove the wrong line"
            )
        table[image] = cells[1]
    return table
