"""Time the stages of a run and keep their results by the digest of what they were made from."""

import fcntl
import hashlib
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from qtool.errors import RecipeError
from qtool.files import atomic_path, make_folder, remove_temporaries
from qtool.report.schema import Stage

T = TypeVar("T")

# Large results of one kind that a process holds for the trials of a search.
MOST_SHARED = 4


@dataclass
class StageRecord:
    """Notes of one stage while it runs.

    Attributes:
        notes: sentences for the report.
        cached: True when the result of an earlier run is used.
        child_mb: peak memory of child processes in MB.
    """

    notes: list[str] = field(default_factory=list)
    cached: bool = False
    child_mb: int = 0


@dataclass
class StageCache:
    """The stages of one run: timed, and kept between runs.

    Attributes:
        folder: holds finished results.
        fresh: ignore results of earlier runs; a search and the run of what it chose are one run.
        base: digested into every key besides a result's own parts (source, versions, threads).
        done: the stages that ended, in order.
        shared: kind -> key -> result, in memory for the trials of a search, the latest ones; None:
            none are held.
    """

    folder: Path
    fresh: bool = False
    base: tuple[str, ...] = ()
    done: list[Stage] = field(default_factory=list)
    shared: dict[str, dict[str, Any]] | None = None
    _made: set[Path] = field(default_factory=set, repr=False)
    _partial: list[Path] = field(default_factory=list, repr=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; remove what a killed one did not finish writing.

        Raises:
            RecipeError: another run is writing there, or it cannot be made.
        """
        make_folder(self.folder)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RecipeError(
                    f"--out {self.folder.parent}: another run is writing there; wait for it, or "
                    "choose another folder"
                ) from error
            for folder in (self.folder, self.folder.parent):
                remove_temporaries(folder)
            yield
        finally:
            os.close(handle)

    def empty(self, spared: str) -> None:
        """Remove all results, so that other processes use none of an earlier run either.

        Args:
            spared: name of a file in the folder that is no result.
        """
        for path in self.folder.iterdir():
            if path.name != spared:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.fresh = False

    @contextmanager
    def stage(self, name: str) -> Iterator[StageRecord]:
        """Time a stage and collect its notes; a stage that fails leaves no record."""
        record = StageRecord()
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

    def path_for(self, name: str, parts: tuple[str, ...], suffix: str = "") -> Path:
        """Return the file that holds the result made from these parts."""
        key = hashlib.sha256("\0".join((name, *self.base, *parts)).encode()).hexdigest()[:24]
        return self.folder / f"{name}-{key}{suffix}"

    def is_finished(self, name: str, parts: tuple[str, ...]) -> bool:
        """Return whether :meth:`cached` would read the result made from these parts.

        Args:
            name: begins the file's name.
            parts: as for :meth:`cached`.
        """
        path = self.path_for(name, parts)
        return path.is_file() and (not self.fresh or path in self._made)

    def cached(
        self,
        record: StageRecord,
        name: str,
        parts: tuple[str, ...],
        make: Callable[[], T],
        save: Callable[[T, Path], None],
        load: Callable[[Path], T],
    ) -> T:
        """Return the result of an earlier run made from the same parts, or make it.

        Args:
            record: of the running stage; its ``cached`` is set.
            name: begins the file's name.
            parts: everything the result depends on, besides ``base``.
            make: computes the result.
            save: writes it to one file.
            load: reads it back.
        """
        path = self.path_for(name, parts)
        if self.is_finished(name, parts):
            try:
                result = load(path)
            except Exception as error:  # a damaged file fails in its format's own ways
                record.notes.append(f"the cached {name} cannot be read ({error}); made again")
            else:
                record.cached = True
                return result
        earlier = len(self._partial)
        result = make()
        with atomic_path(path) as temporary:
            save(result, temporary)
        self._made.add(path)
        for part in self._partial[earlier:]:
            part.unlink(missing_ok=True)
        del self._partial[earlier:]
        return result

    def remove_with_whole(self, name: str, parts: tuple[str, ...]) -> None:
        """Remove a result once that which is being made is stored, such as a layer of a step.

        A run that was stopped goes on from such results.

        Args:
            name: begins the file's name.
            parts: as for :meth:`cached`.
        """
        self._partial.append(self.path_for(name, parts))

    def remembered(
        self, kind: str, key: Callable[[], str], make: Callable[[], T], most: int = MOST_SHARED
    ) -> T:
        """Return what another trial of this search made for the same key, or make it.

        Args:
            kind: of the result.
            key: everything the result depends on; called where results are shared.
            make: computes the result.
            most: results of this kind that are held.
        """
        if self.shared is None:
            return make()
        results, name = self.shared.setdefault(kind, {}), key()
        result: T = results.pop(name) if name in results else make()
        results[name] = result
        for oldest in list(results)[:-most]:
            del results[oldest]
        return result


@contextmanager
def temporary_cache() -> Iterator[StageCache]:
    """Yield a cache whose folder is removed afterwards, for runs that leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
        yield StageCache(Path(folder), fresh=True)


def first_missing(path: Path) -> Path | None:
    """Return the topmost folder on the way to ``path`` that does not exist yet, or None."""
    missing = [p for p in (path.absolute(), *path.absolute().parents) if not p.exists()]
    return missing[-1] if missing else None


def peak_rss_mb() -> int:
    """Return the largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))


@cache
def source_digest() -> str:
    """Return a digest of qtool's own source: results of another version are not reused."""
    total = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *root.parent.glob("configs/targets/*.yaml")]):
        total.update(path.read_bytes())
    return total.hexdigest()
