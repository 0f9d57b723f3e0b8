"""Event files for TensorBoard: loss, score and learning rates while training goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from qtool.qat.optimizer import rates
from qtool.qat.settings import Epoch, Settings

T = torch.Tensor

# Steps whose mean loss is one point. Points are read from the device once an epoch, as each reading
# waits for it.
STEPS_PER_POINT = 10


class TensorBoardLog:
    """Event files of one run; the x-axis counts optimizer steps.

    Tags: ``loss/step`` (mean over STEPS_PER_POINT steps), ``loss/epoch``, ``score``,
    ``rate/weights``, ``rate/scales``, and ``share/oscillating`` and ``share/frozen`` where those
    are counted.
    """

    def __init__(self, folder: Path, history: list[Epoch], steps: int, settings: Settings) -> None:
        """Open the folder.

        Args:
            folder: of this run alone. Files of an interrupted run are continued; those of a run
                that starts anew are replaced.
            history: epochs done before; written where the folder has no file yet.
            steps: of one epoch.
            settings: with the learning rates.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.steps, self.settings = steps, settings
        files = sorted(folder.glob("events.out.tfevents.*"))
        if not history:
            for file in files:
                file.unlink()
        # TensorBoard drops the points of an interrupted epoch, which is trained again from here.
        first_step = len(history) and (len(history) - 1) * steps + 1
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)
        self._total: T | None = None
        self._points: list[tuple[int, T]] = []
        for epoch in [] if files else history:
            self.epoch(epoch)

    def step(self, at: int, loss: T) -> None:
        """Record the loss of one step; does not wait for the device.

        Args:
            at: steps since training began, from 1.
            loss: rank 0.
        """
        loss = loss.detach()
        self._total = loss if self._total is None else self._total + loss
        if at % STEPS_PER_POINT == 0:
            self._points.append((at, self._total / STEPS_PER_POINT))
            self._total = None

    def epoch(self, done: Epoch) -> None:
        """Write the results of one epoch, and the losses of its steps."""
        at = done.number * self.steps
        self._flush()
        self._writer.add_scalar("score", done.score, at)
        if done.loss is not None:
            self._writer.add_scalar("loss/epoch", done.loss, at)
            weights, _, scales, _ = rates(self.settings, done.number - 1 / self.steps)
            self._writer.add_scalar("rate/weights", weights, at)
            self._writer.add_scalar("rate/scales", scales, at)
        for name in ("oscillating", "frozen"):
            if getattr(done, name) is not None:
                self._writer.add_scalar(f"share/{name}", getattr(done, name), at)
        self._writer.flush()

    def close(self) -> None:
        """Write the rest, also of an epoch that was not finished, and close the files."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._points:
            values = torch.stack([value for _, value in self._points]).tolist()
            for (at, _), value in zip(self._points, values, strict=True):
                self._writer.add_scalar("loss/step", value, at)
            self._points = []


@contextmanager
def tensorboard_log(
    folder: Path | None, history: list[Epoch], steps: int, settings: Settings
) -> Iterator[TensorBoardLog | None]:
    """Yield a log that is closed at the end, or None without a folder.

    Args:
        folder: None: nothing is written.
        history: as for TensorBoardLog.
        steps: as for TensorBoardLog.
        settings: as for TensorBoardLog.
    """
    if folder is None:
        yield None
        return
    log = TensorBoardLog(folder, history, steps, settings)
    try:
        yield log
    finally:
        log.close()
