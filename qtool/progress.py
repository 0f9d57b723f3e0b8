"""Report the progress of long work to whoever draws it."""

from typing import Protocol


class Progress(Protocol):
    """Receive the progress of long work; called often, drawn by whoever has a screen."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Report that ``done`` of ``total`` units of ``stage`` are finished.

        Args:
            stage: name of the stage.
            done: finished units.
            total: units in all; None where the number is unknown.
            note: one short text shown beside the bar.
        """


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Draw nothing; the default :class:`Progress`."""
