"""Event files for TensorBoard: loss, score and learning rates while training goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from qtool.qat.optimizer import rates
from qtool.qat.settings import Epoch, Settings

T = torch.Tensor

# Steps whose mean loss is one point. They are read from the device once an epoch.
EVERY = 10


class Board:
    """Writes the events of one run; the x-axis counts optimizer steps.

    Tags: ``loss/step`` (mean over EVERY steps), ``loss/epoch``, ``score``, ``rate/weights``,
    ``rate/scales``, and ``share/oscillating`` and ``share/frozen`` where those are counted.
    """

    def __init__(self, folder: Path, history: list[Epoch], steps: int, settings: Settings) -> None:
        """Open the folder.

        Args:
            folder: of this run alone. Files of an interrupted run are gone on with; those of a run
                that starts anew are replaced.
            history: epochs done before; told where no file tells of them yet.
            steps: of one epoch.
            settings: with the learning rates.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.steps, self.settings = steps, settings
        kept = sorted(folder.glob("events.out.tfevents.*"))
        if not history:
            for file in kept:
                file.unlink()
        # What an interrupted epoch wrote is taken back when its first step comes again.
        again = len(history) and (len(history) - 1) * steps + 1
        self._writer = SummaryWriter(str(folder), purge_step=again or None)
        self._total: T | None = None
        self._points: list[tuple[int, T]] = []
        for epoch in [] if kept else history:
            self.epoch(epoch)

    def step(self, at: int, loss: T) -> None:
        """Note the loss of one step, the ``at``-th since training began; waits for no device."""
        loss = loss.detach()
        self._total = loss if self._total is None else self._total + loss
        if at % EVERY == 0:
            self._points.append((at, self._total / EVERY))
            self._total = None

    def epoch(self, done: Epoch) -> None:
        """Write what one epoch came to, and the losses of its steps."""
        at = done.number * self.steps
        self._flush()
        self._writer.add_scalar("score", done.score, at)
        if done.loss is not None:
            self._writer.add_scalar("loss/epoch", done.loss, at)
            found = rates(self.settings, done.number - 1 / self.steps)
            self._writer.add_scalar("rate/weights", found[0], at)
            self._writer.add_scalar("rate/scales", found[2], at)
        for name in ("oscillating", "frozen"):
            if getattr(done, name) is not None:
                self._writer.add_scalar(f"share/{name}", getattr(done, name), at)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, also of an epoch that did not end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._points:
            values = torch.stack([value for _, value in self._points]).tolist()
            for (at, _), value in zip(self._points, values, strict=True):
                self._writer.add_scalar("loss/step", value, at)
            self._points = []


@contextmanager
def recorded(
    folder: Path | None, history: list[Epoch], steps: int, settings: Settings
) -> Iterator[Board | None]:
    """A board that is closed at the end, or None without a folder; arguments as for Board."""
    if folder is None:
        yield None
        return
    board = Board(folder, history, steps, settings)
    try:
        yield board
    finally:
        board.close()
