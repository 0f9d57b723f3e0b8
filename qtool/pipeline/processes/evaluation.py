"""Evaluate the files in shares: each process runs them on consecutive samples."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qtool.pipeline.processes.message import Worker
from qtool.qat import distributed
from qtool.verification.ort_process import run_tasks
from qtool.verification.tasks import Evaluate


@dataclass(frozen=True)
class EvaluationShares:
    """Message: each process evaluates its share and writes the outputs where the tasks say.

    Attributes:
        tasks: one tuple for each process.
    """

    tasks: tuple[tuple[Evaluate, ...], ...]

    def assist(self, worker: Worker) -> None:
        """Run this process's tasks in a child, as the first process does."""
        with TemporaryDirectory(prefix="qtool-") as folder:
            run_tasks(self.tasks[distributed.rank()], Path(folder))
        distributed.gather(None)


class SharedEvaluations:
    """Evaluations whose samples all processes share.

    Attributes:
        own: the tasks of this process; all of them where there is one, or too few samples.
    """

    def __init__(self, tasks: tuple[Evaluate, ...]) -> None:
        """Send the other processes their samples.

        Args:
            tasks: on all samples.
        """
        self._tasks, self._count = tasks, distributed.count()
        if any(len(task.samples.indices) < self._count for task in tasks):
            self._count = 1
        self.own = tasks
        if self._count > 1:
            ranks = range(self._count)
            shares = tuple(tuple(self._part(task, rank) for task in tasks) for rank in ranks)
            distributed.share(lambda: EvaluationShares(shares))
            self.own = shares[0]

    def wait(self) -> None:
        """Wait until the other processes have evaluated their samples."""
        if self._count > 1:
            distributed.gather(None)

    def join(self) -> None:
        """Write the outputs on all samples, in their order, where the tasks say."""
        for task in self._tasks if self._count > 1 else ():
            parts = [Path(self._part(task, rank).path) for rank in range(self._count)]
            np.save(task.path, np.concatenate([np.load(part) for part in parts]))
            for part in parts:
                part.unlink()

    def _part(self, task: Evaluate, rank: int) -> Evaluate:
        indices = task.samples.indices
        first, end = (len(indices) * k // self._count for k in (rank, rank + 1))
        samples = replace(task.samples, indices=indices[first:end])
        path = f"{task.path.removesuffix('.npy')}.{rank}.npy"
        return replace(task, samples=samples, path=path)
