"""Choose the folder of a run, so that no run replaces another one in silence."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from itertools import chain, count
from pathlib import Path

from qtool.files import make_folder, write_text_atomic
from qtool.qat.distributed import expected
from qtool.steps.stage_cache import first_missing

OWNER = Path(".stages") / "run"
"""The file in a run folder that holds the identity of its run."""


@dataclass(frozen=True)
class Request:
    """The run folder that the command line names, or leaves open.

    Attributes:
        default: the folder without ``--out``.
        out: the folder that ``--out`` names; None: none.
        overwrite: replace the run in the default folder.
    """

    default: Path
    out: Path | None = None
    overwrite: bool = False

    @property
    def fixed(self) -> Path | None:
        """The folder, where the user named it; None where a number may be added."""
        return self.out or (self.default if self.overwrite else None)


@contextmanager
def chosen_folder(request: Request, identity: str) -> Iterator[Path]:
    """Yield the folder of a run; after an error it is removed where it was made for that run.

    Without ``--out`` and ``--overwrite`` this is the folder of the same run, finished or not, or
    else the first of ``runs/net``, ``runs/net-2``, ``runs/net-3`` ... that does not exist. Several
    processes may choose at once.

    Args:
        request: of the command line.
        identity: of the run.

    Raises:
        RecipeError: the folder cannot be made.
        KeyboardInterrupt: with a sentence about the folder.
    """
    fixed = request.fixed
    made = first_missing(fixed or request.default)
    if fixed is not None:
        folder, is_new = fixed, not fixed.exists()
    else:
        folder, is_new = _claim(request.default, identity)
    try:
        yield folder
        if fixed is not None and folder.is_dir():
            _write_owner(folder, identity)
    except KeyboardInterrupt as error:
        if folder.is_dir():
            text = f"the same command goes on with what is finished in {folder}"
            raise KeyboardInterrupt(*error.args, text) from error
        raise
    except Exception:
        # Finished runs of a sweep stay. Of several processes the first cleans up.
        if is_new and expected()[0] == 0 and not any(folder.rglob("report.json")):
            shutil.rmtree(folder, ignore_errors=True)
        remove_empty(folder.parent, made)
        raise


def remove_empty(folder: Path, top: Path | None) -> None:
    """Remove empty folders from ``folder`` up to ``top``; None: nothing was made, so none."""
    with suppress(OSError):  # another run has its folder there
        while top is not None and folder.absolute().is_relative_to(top):
            folder.rmdir()
            folder = folder.parent


def _claim(default: Path, identity: str) -> tuple[Path, bool]:
    """Return the folder for a run, marked as its own, and whether it is new."""
    with _locked(default.parent):
        for folder in _numbered(default):
            if _owner(folder) == identity:
                return folder, False
        others = (default.with_name(f"{default.name}-{number}") for number in count(2))
        folder = next(folder for folder in chain([default], others) if _is_free(folder))
        _write_owner(folder, identity)
        return folder, True


def _numbered(default: Path) -> list[Path]:
    """Return the existing folders that are named like ``default``, in the order of their number."""
    numbers = {1: default}
    for path in default.parent.glob(f"{escape(default.name)}-*"):
        number = path.name.removeprefix(f"{default.name}-")
        if number.isdecimal():
            numbers[int(number)] = path
    return [path for _, path in sorted(numbers.items()) if path.is_dir()]


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _owner(folder: Path) -> str:
    file = folder / OWNER
    return file.read_text() if file.is_file() else ""


def _write_owner(folder: Path, identity: str) -> None:
    write_text_atomic(folder / OWNER, identity)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder while a run chooses its own in it.

    Raises:
        RecipeError: it cannot be made.
    """
    make_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
