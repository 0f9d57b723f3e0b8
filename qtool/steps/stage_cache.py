"""Stages of a run: timed, remembered by the digest of what they were made from, reported."""

import fcntl
import hashlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from qtool.errors import RecipeError
from qtool.files import atomic_path
from qtool.report.report import Stage

T = TypeVar("T")


@dataclass
class Record:
    """What one stage has to say while it runs."""

    notes: list[str] = field(default_factory=list)
    cached: bool = False
    child_mb: int = 0


@dataclass
class Stages:
    """The stages of one run.

    Attributes:
        folder: where finished results are kept.
        fresh: ignore results of earlier runs.
        base: what every result depends on besides its own parts (source, versions, threads).
    """

    folder: Path
    fresh: bool
    base: tuple[str, ...]
    done: list[Stage] = field(default_factory=list)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RecipeError: another run is writing there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RecipeError(
                    f"--out {self.folder.parent}: another run is writing there; wait for it, or "
                    "choose another folder"
                ) from error
            yield
        finally:
            os.close(held)

    @contextmanager
    def stage(self, name: str) -> Iterator[Record]:
        """Time a stage and keep its notes; a stage that fails leaves no record."""
        record = Record()
        start = time.perf_counter()
        yield record
        self.done.append(
            Stage(
                name=name,
                seconds=round(time.perf_counter() - start, 3),
                peak_rss_mb=max(peak_rss_mb(), record.child_mb),
                cached=record.cached,
                notes=record.notes,
            )
        )

    def place(self, name: str, parts: tuple[str, ...], suffix: str = "") -> Path:
        """The file that a result made from these parts is kept in."""
        key = hashlib.sha256("\0".join((name, *self.base, *parts)).encode()).hexdigest()[:24]
        return self.folder / f"{name}-{key}{suffix}"

    def remembered(
        self,
        record: Record,
        name: str,
        parts: tuple[str, ...],
        make: Callable[[], T],
        save: Callable[[T, Path], None],
        load: Callable[[Path], T],
    ) -> T:
        """The result of an earlier run made from the same parts, or a new one.

        Args:
            record: of the running stage; its ``cached`` is set.
            name: names the file.
            parts: everything the result depends on, besides ``base``.
            make: computes it.
            save, load: to and from one file.
        """
        path = self.place(name, parts)
        if path.is_file() and not self.fresh:
            try:
                result = load(path)
            except Exception as error:  # a damaged file fails in its format's own ways
                record.notes.append(f"the remembered {name} cannot be read ({error}); made again")
            else:
                record.cached = True
                return result
        result = make()
        with atomic_path(path) as temporary:
            save(result, temporary)
        return result


def first_missing(path: Path) -> Path | None:
    """The topmost folder on the way to ``path`` that does not exist yet, or None."""
    missing = [p for p in (path.absolute(), *path.absolute().parents) if not p.exists()]
    return missing[-1] if missing else None


def peak_rss_mb() -> int:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))


@cache
def source_digest() -> str:
    """Digest of qtool's own source: results of another version are not reused."""
    total = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *root.parent.glob("configs/targets/*.yaml")]):
        total.update(path.read_bytes())
    return total.hexdigest()
