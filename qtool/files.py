"""Atomic writing of files: temporary name in the same folder, fsync, rename."""

import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qtool.errors import RecipeError

# Weights of more bytes than this are written to a file of their own, outside protobuf.
EXTERNAL_BYTES = 1_500_000_000

# Weights in files of more bytes than this stay there, mapped; a smaller model is read at once.
MAPPED_BYTES = 1 << 28


def make_folder(folder: Path) -> None:
    """Make a folder of a run, and those above it, where they are missing.

    Raises:
        RecipeError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"{folder}: cannot be made ({error.strerror}); name another folder with --out"
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` when the block ends without an error.

    The temporary file lies in the same folder and keeps the suffix of `path`, so that writers that
    look at it (`np.savez`) do the same as for the real name. Missing folders are created. Where the
    block raises, the temporary file is removed and an earlier `path` is unchanged.

    Args:
        path: the file to write; a link is followed, not replaced.

    Raises:
        RecipeError: `path` is a folder or a device, the folder cannot be used, or the block wrote
            nothing. Errors of the block itself pass through untouched.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise RecipeError(f"{path}: is not a regular file; expected a file name to write to")
    temporary = target.with_name(f".{secrets.token_hex(4)}.tmp-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield temporary
        _publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what :func:`atomic_path` of a process that was killed left in a folder.

    Args:
        folder: that no other process writes to.
    """
    for path in folder.glob(".????????.tmp-*"):
        path.unlink(missing_ok=True)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically.

    A device such as ``/dev/stdout`` cannot be the goal of a rename and is written directly.

    Args:
        path: the file, or a device.
        data: its whole content.

    Raises:
        RecipeError: the file cannot be written (says where and why).
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            with target.open("wb") as device:
                device.write(data)
            return
        with atomic_path(target) as temporary, temporary.open("xb") as stream:
            stream.write(data)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_text_atomic(path: str | Path, text: str) -> None:
    r"""Write `text` to `path` atomically, as UTF-8 with ``\n`` line ends.

    Args:
        path: the file, or a device.
        text: its whole content.

    Raises:
        RecipeError: the file cannot be written (says where and why).
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def digest_of(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of one file, or of the digests of several, in order (hex)."""
    each = []
    for path in paths:
        with path.open("rb") as stream:
            each.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def _publish(temporary: Path, target: Path) -> None:
    """Sync the bytes to the disk, rename, and sync the folder that holds the new name."""
    if not temporary.is_file():
        raise RecipeError(f"{target}: nothing was written to its temporary file {temporary}")
    _sync(temporary, os.O_RDWR)
    temporary.replace(target)
    if os.name == "posix":
        _sync(target.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: str | Path, error: OSError) -> RecipeError:
    return RecipeError(
        f"{path}: cannot be written ({error.strerror or error}); "
        "choose another folder, or free space and rights there"
    )
