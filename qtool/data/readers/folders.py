"""Folders of samples, one file each: flat, or in class folders."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.errors import DataError

# The share of files in a folder, or a single one, that may be of another kind, such as a README.
MAX_OTHERS = 0.1


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

    def choose(self, names: Sequence[str], others: list[str]) -> list[str]:
        """Return the names that end like a sample's; append the other ones to ``others``."""
        samples: list[str] = []
        for name in names:
            fits = os.path.splitext(name)[1].lower() in self.suffixes
            (samples if fits else others).append(name)
        return samples


@dataclass(frozen=True)
class Listing:
    """The samples of a folder.

    Attributes:
        names: relative to the folder, sorted.
        classes: names of the class folders, sorted; None: there are none.
        notes: about files that were left out, for the report.
    """

    names: list[str]
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]


def list_samples(root: Path, kind: Kind, label_file: Path | None) -> Listing:
    """List the samples of a folder.

    Args:
        root: the folder.
        kind: of its samples.
        label_file: a file in the folder that is no sample.

    Raises:
        DataError: no folder, no sample, too many files of another kind, or both files and folders.
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
    others: list[str] = []
    files = kind.choose(sorted(name for name in entries if not entries[name]), others)
    if files and folders:
        raise DataError(
            f"{root}: found {len(files)} {kind.word}s (first: {files[0]}) and {len(folders)} "
            f"folders (first: {folders[0]}); expected class folders only, or {kind.word}s only: "
            "move one kind"
        )
    for folder in folders:
        files.extend(kind.choose(sorted(_walk(root, folder)), others))
    if len(others) > max(1, MAX_OTHERS * (len(files) + len(others))) or (others and not files):
        raise DataError(
            f"{root / others[0]}: not {kind.article} by its name, as {len(others)} of "
            f"{len(files) + len(others)} files, expected at most {MAX_OTHERS:.0%}; "
            f"{', '.join(sorted(kind.suffixes))} are read: move the others elsewhere, or hide them "
            "with a leading dot"
        )
    if not files:
        raise DataError(
            f"{root}: the folder holds no {kind.word}; expected {kind.word}s or class folders"
        )
    return Listing(files, folders or None, _left_out(root, kind, others))


def _left_out(root: Path, kind: Kind, others: Sequence[str]) -> tuple[str, ...]:
    """Return a note that names the files of another kind, if there are any."""
    listed = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
    note = f"{len(others)} files of {root} are no {kind.word}s by their names, left out: {listed}"
    return (note,) if others else ()


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
    _refuse_loop(root / folder)
    for place, inner, files in os.walk(root / folder, onerror=_unlisted, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in inner:
            _refuse_loop(Path(place, name))
        start = Path(place).relative_to(root).as_posix()
        for name in files:
            if not name.startswith("."):
                yield f"{start}/{name}"


def _refuse_loop(folder: Path) -> None:
    """Raise DataError for a link to a folder that holds the link, which a walk never leaves."""
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{folder}: a link to {folder.resolve()}, which holds it; expected folders without "
            "loops: remove the link"
        )


def _unlisted(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); expected a readable folder"
    ) from error
