"""Run tasks in a child process without torch and onnx_ir, and collect their results.

The parent writes the tasks to a file and the child sends messages as JSON lines; arrays are passed
in files.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from qtool.errors import (
    DataError,
    ModelError,
    OutOfMemoryError,
    QtoolError,
    RecipeError,
    StorageError,
    UnsupportedError,
    out_of_memory,
)
from qtool.progress import Progress, silent
from qtool.verification.tasks import Task, write_tasks

R = TypeVar("R")

FAILURES: dict[str, type[QtoolError]] = {
    "DataError": DataError,
    "ModelError": ModelError,
    "OutOfMemoryError": OutOfMemoryError,
    "RecipeError": RecipeError,
    "StorageError": StorageError,
    "UnsupportedError": UnsupportedError,
}

# The child; the file of its tasks follows.
COMMAND = (sys.executable, "-m", "qtool.verification.ort_worker")


@dataclass
class TaskResults:
    """Results of the tasks.

    Attributes:
        peak_rss_mb: the child's largest resident memory in MB.
    """

    peak_rss_mb: int = 0
    _results: dict[int, Any] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """The number of tasks that have a result."""
        return len(self._results)

    def add(self, task: Task[Any], message: dict[str, Any]) -> None:
        """Add the result that the child sent.

        Args:
            task: as the caller made it.
            message: with the keys ``result`` and ``peak_rss_mb``.
        """
        self._results[id(task)] = task.result(**message["result"])
        self.peak_rss_mb = max(self.peak_rss_mb, message["peak_rss_mb"])

    def __getitem__(self, task: Task[R]) -> R:
        """Return the result of one task, looked up by the task object itself."""
        result: R = self._results[id(task)]
        return result


def run_tasks(
    tasks: tuple[Task[Any], ...],
    folder: Path,
    progress: Progress = silent,
    meanwhile: Callable[[], object] = lambda: None,
) -> TaskResults:
    """Run tasks in a child process, in order.

    A child that has too little memory, or is killed (by the system, which is out of memory), is
    followed by a second one, which does the remaining tasks in smaller batches.

    Args:
        tasks: see :mod:`qtool.verification.tasks`.
        folder: an existing folder for temporary files of both processes.
        progress: receives the progress of every task.
        meanwhile: called in this process; the child starts timing only after it has returned.

    Returns:
        The results, indexed by the same task objects.

    Raises:
        DataError: the data cannot be read or does not fit the model.
        OutOfMemoryError: the second child, too, has too little memory.
        UnsupportedError: ONNX Runtime cannot load or run a model, or crashes on it.
        RuntimeError: the child ended before all tasks were done, by a defect of qtool.
    """
    results = TaskResults()
    try:
        _run_in_child(tasks, folder, results, progress, meanwhile)
    except OutOfMemoryError:
        progress("verify", 0, None, "too little memory: once more, in smaller batches")
        _run_in_child(tasks[results.done :], folder, results, progress)
    return results


def _run_in_child(
    tasks: tuple[Task[Any], ...],
    folder: Path,
    results: TaskResults,
    progress: Progress,
    meanwhile: Callable[[], object] | None = None,
) -> None:
    """Run tasks in one child and add their results; without ``meanwhile``, in smaller batches."""
    jobs, errors = folder / "tasks.json", folder / "stderr.txt"
    write_tasks(tasks if meanwhile else tuple(t.with_less_memory() for t in tasks), jobs)
    done = 0
    with errors.open("w") as stderr, _child(jobs, stderr) as child:
        try:
            if meanwhile is not None:
                meanwhile()
            _send_quiet(child)
            for message in _messages(child):
                if "progress" in message:
                    progress(*message["progress"])
                elif "error" in message:
                    raise FAILURES[message["error"]](message["text"])
                else:
                    results.add(tasks[done], message)
                    done += 1
        finally:
            with suppress(ProcessLookupError):
                child.kill()
    if done != len(tasks):
        raise _ended(child.returncode, tasks[done], errors.read_text()[-4000:])


def _ended(code: int, task: Task[Any], stderr: str) -> Exception:
    """Return the error of a child that ended before a task was done."""
    place = f"the task {type(task).__name__} of the verifying process"
    name = signal.Signals(-code).name if code < 0 else ""
    if name == "SIGKILL":  # by the system, where memory ends
        return out_of_memory(f"{place} was killed")
    if name:
        return UnsupportedError(
            f"ONNX Runtime crashed ({name}) during {place}: the model is damaged, or meets a "
            "defect of this version of ONNX Runtime; try another version"
        )
    return RuntimeError(f"{place} ended with {code}:\n{stderr}")


def _child(jobs: Path, stderr: IO[str]) -> "subprocess.Popen[str]":
    """Start the child process with the same qtool as this one."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [*COMMAND, str(jobs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def _send_quiet(child: "subprocess.Popen[str]") -> None:
    """Allow the child to start timing; a child that has failed already does not read this."""
    if child.stdin is None:
        raise AssertionError("the child has no stdin")
    with suppress(BrokenPipeError):
        child.stdin.write("quiet\n")
    with suppress(BrokenPipeError):
        # Closing flushes. Without it the interpreter closes later, and its BrokenPipeError would
        # hide the error of the child.
        child.stdin.close()


def _messages(child: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    """Yield the messages of the child until it ends."""
    if child.stdout is None:
        raise AssertionError("the child has no stdout")
    for line in child.stdout:
        yield json.loads(line)
    child.wait()
