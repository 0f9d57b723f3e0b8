"""Progress on stderr: bars with an ETA on a terminal, else one line for each stage."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qtool.cli.console.exits import printable
from qtool.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


@contextmanager
def show_progress(quiet: bool) -> Iterator[Progress]:
    """Yield the function that long work reports its progress to.

    Args:
        quiet: print nothing.
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _rich_progress() as bars:
            yield _Bars(bars)
    else:
        lines = _Lines()
        try:
            yield lines
        finally:
            lines.close()


def _rich_progress() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.progress import TimeRemainingColumn as Remaining

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        Remaining(),
        console=Console(stderr=True),
    )


@dataclass
class _Bars:
    """Progress bars, one for each stage; a note is printed above them, once."""

    bars: "RichProgress"
    tasks: dict[str, int] = field(default_factory=dict)
    printed: set[tuple[str, str]] = field(default_factory=set)

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Move the bar of ``stage``."""
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total)
        self.bars.update(self.tasks[stage], completed=done, total=total)  # type: ignore[arg-type]
        if note and (stage, note) not in self.printed:
            self.printed.add((stage, note))
            self.bars.console.print(printable(f"{stage}: {note}"), markup=False, highlight=False)


@dataclass
class _Lines:
    """Progress lines: one for each note, such as an epoch's, at once, and one for each stage."""

    stage: str = ""
    amount: str = ""
    note: str = ""
    started: float = 0.0
    printed: set[str] = field(default_factory=set)

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Record the progress of ``stage``; a new stage prints the line of the one before."""
        if stage != self.stage:
            self.close()
            self.stage, self.note, self.started = stage, "", time.monotonic()
        self.amount = f"{done}/{total}" if total is not None else f"{done}"
        if note and note != self.note:
            self.note = note
            self._print(note)

    def close(self) -> None:
        """Print the line of the current stage, once."""
        if self.stage and self.stage not in self.printed:
            self.printed.add(self.stage)
            self._print()

    def _print(self, *notes: str) -> None:
        seconds = f"{time.monotonic() - self.started:.1f} s"
        parts = [f"{self.stage}: {self.amount}, {seconds}", *notes]
        print(printable("; ".join(parts)), file=sys.stderr, flush=True)
