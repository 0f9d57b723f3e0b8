"""Messages of the first process to the others, each of which does a share of the work."""

from typing import Protocol

from qtool.pipeline.context import Prepared, RunOptions


class Worker(Protocol):
    """A process that assists the first one."""

    @property
    def options(self) -> RunOptions:
        """Settings of the run."""

    @property
    def prepared(self) -> Prepared:
        """The model, rewritten, and the data."""


class Message(Protocol):
    """Work that the first process shares; sent to all others."""

    def assist(self, worker: Worker) -> None:
        """Do one process's share of the work."""
