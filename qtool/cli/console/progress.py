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


# The speed of a stage is that of its last seconds, which must hold two of its units: rich's 30 show
# no ETA for trials and epochs.
SPEED_SECONDS = 3600.0


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
        speed_estimate_period=SPEED_SECONDS,
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
class _Stage:
    """A stage of which a line is printed when it is complete, or when all work ends."""

    started: float
    amount: str = ""
    note: str = ""
    complete: bool = False
    printed: bool = False


@dataclass
class _Lines:
    """Progress lines: one for each note, such as an epoch's, at once, and one for each stage.

    A stage that others interrupt, as the diagnosis is by the steps that it tries, has its line when
    it is complete.
    """

    stages: dict[str, _Stage] = field(default_factory=dict)
    current: str = ""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Record the progress of ``stage``; a new stage prints the line of the one before."""
        if stage != self.current:
            self._print_complete()
            self.current = stage
        state = self.stages.setdefault(stage, _Stage(time.monotonic()))
        state.amount = f"{done}/{total}" if total is not None else f"{done}"
        state.complete = total is None or done >= total
        if note and note != state.note:
            state.note = note
            self._print(stage, note)

    def close(self) -> None:
        """Print the lines of all stages that have none yet."""
        for stage in self.stages:
            self._print_once(stage)

    def _print_complete(self) -> None:
        if self.current and self.stages[self.current].complete:
            self._print_once(self.current)

    def _print_once(self, stage: str) -> None:
        if not self.stages[stage].printed:
            self.stages[stage].printed = True
            self._print(stage)

    def _print(self, stage: str, *notes: str) -> None:
        state = self.stages[stage]
        parts = [f"{stage}: {state.amount}, {time.monotonic() - state.started:.1f} s", *notes]
        print(printable("; ".join(parts)), file=sys.stderr, flush=True)
