"""Folders of samples, one file each: flat, or in class folders."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.errors import DataError


@dataclass(frozen=True)
class Kind:
    """The kind of samples in a folder, for messages.

    Attributes:
        key: the recipe's key that names the folder.
        word: one sample: "image".
        article: the same with its article.
        suffixes: the endings of the files, in any case.
    """

    key: str
    word: str
    article: str
    suffixes: tuple[str, ...]


def list_samples(
    root: Path, kind: Kind, label_file: Path | None
) -> tuple[list[str], tuple[str, ...] | None]:
    """List the samples of a folder.

    Args:
        root: the folder.
        kind: of its samples.
        label_file: a file in the folder that is no sample.

    Returns:
        The samples' names relative to root, sorted, and the classes where there are class folders.

    Raises:
        DataError: no folder, no sample, a file of another kind, or both files and folders.
    """
    if not root.is_dir():
        state = "a file" if root.exists() else "nothing"
        raise DataError(
            f"{root}: found {state}, expected a folder of {kind.word}s; correct `{kind.key}`"
        )
    try:
        with os.scandir(root) as scan:  # knows folders without a look at each file
            entries = {e.name: e.is_dir() for e in scan if not e.name.startswith(".")}
    except OSError as error:
        raise DataError(
            f"{root}: cannot be listed ({error}); expected a readable folder"
        ) from error
    if label_file is not None and label_file.parent == root and not label_file.is_dir():
        entries.pop(label_file.name, None)
    folders = tuple(sorted(name for name, is_folder in entries.items() if is_folder))
    files = sorted(name for name, is_folder in entries.items() if not is_folder)
    _check_suffixes(root, files, kind)
    if files and folders:
        raise DataError(
            f"{root}: found {len(files)} {kind.word}s (first: {files[0]}) and {len(folders)} "
            f"folders (first: {folders[0]}); expected class folders only, or {kind.word}s only: "
            "move one kind"
        )
    names = files
    for folder in folders:
        inside = sorted(_walk(root, folder))
        _check_suffixes(root, inside, kind)
        names.extend(inside)
    if not names:
        raise DataError(
            f"{root}: the folder holds no {kind.word}; expected {kind.word}s or class folders"
        )
    return names, folders or None


def folder_labels(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return each sample's class, int64 [len(names)]: the index of its first folder in classes."""
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[name.split("/", 1)[0]] for name in names], np.int64)


def file_digest(path: Path) -> str:
    """Compute the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(root: Path, folder: str) -> Iterator[str]:
    """Yield files below root/folder that are not hidden, relative to root, with forward slashes."""
    for place, inner, files in os.walk(root / folder, onerror=_unlisted):
        inner[:] = [name for name in inner if not name.startswith(".")]
        start = Path(place).relative_to(root).as_posix()
        for name in files:
            if not name.startswith("."):
                yield f"{start}/{name}"


def _unlisted(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); expected a readable folder"
    ) from error


def _check_suffixes(root: Path, names: Sequence[str], kind: Kind) -> None:
    for name in names:
        if os.path.splitext(name)[1].lower() not in kind.suffixes:
            raise DataError(
                f"{root / name}: not {kind.article} by its name; expected "
                f"{', '.join(sorted(kind.suffixes))}: move it elsewhere, or hide it with a leading "
                "dot"
            )
