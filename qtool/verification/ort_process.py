"""Run tasks in a child process without torch and onnx_ir, and collect their results.

The parent writes the tasks to a file and the child sends messages as JSON lines; arrays are passed
in files.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from qtool.errors import DataError, ModelError, QtoolError, RecipeError, UnsupportedError
from qtool.progress import Progress, silent
from qtool.verification.tasks import Task, write_tasks

R = TypeVar("R")

FAILURES: dict[str, type[QtoolError]] = {
    kind.__name__: kind for kind in (DataError, ModelError, RecipeError, UnsupportedError)
}


@dataclass
class TaskResults:
    """Results of the tasks.

    Attributes:
        peak_rss_mb: the child's largest resident memory in MB.
    """

    peak_rss_mb: int = 0
    _results: dict[int, Any] = field(default_factory=dict)

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

    Args:
        tasks: see :mod:`qtool.verification.tasks`.
        folder: an existing folder for temporary files of both processes.
        progress: receives the progress of every task.
        meanwhile: called in this process; the child starts timing only after it has returned.

    Returns:
        The results, indexed by the same task objects.

    Raises:
        DataError: the data cannot be read or does not fit the model.
        UnsupportedError: ONNX Runtime cannot load or run a model.
        RuntimeError: the child ended before all tasks were done.
    """
    jobs, errors = folder / "tasks.json", folder / "stderr.txt"
    write_tasks(tasks, jobs)
    results, done = TaskResults(), 0
    with errors.open("w") as stderr, _child(jobs, stderr) as child:
        try:
            meanwhile()
            _send_quiet(child)
            for message in _messages(child):
                if "progress" in message:
                    progress(*message["progress"])
                elif "error" in message:
                    raise FAILURES[message["error"]](message["text"])
                else:
                    task = tasks[done]
                    results._results[id(task)] = task.result(**message["result"])
                    results.peak_rss_mb = max(results.peak_rss_mb, message["peak_rss_mb"])
                    done += 1
        finally:
            with suppress(ProcessLookupError):
                child.kill()
    if done != len(tasks):
        raise RuntimeError(
            f"the verifying process ended with {child.returncode} during task {done + 1} of "
            f"{len(tasks)} ({type(tasks[done]).__name__}):\n{errors.read_text()[-4000:]}"
        )
    return results


def _child(jobs: Path, stderr: IO[str]) -> "subprocess.Popen[str]":
    """Start the child process with the same qtool as this one."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [sys.executable, "-m", "qtool.verification.ort_worker", str(jobs)],
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
