"""Run tasks in a child process that has neither torch nor onnx_ir, and collect its answers.

The parent writes the tasks to a file, the child answers in JSON lines; arrays travel through files.
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
    """Answers of the child, by task.

    Attributes:
        peak_rss_mb: the child's largest resident memory in MB.
    """

    peak_rss_mb: int = 0
    _results: dict[int, Any] = field(default_factory=dict)

    def __getitem__(self, task: Task[R]) -> R:
        """Return the answer to one task."""
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
        folder: a scratch folder both may write to.
        progress: receives the progress of every task.
        meanwhile: work for this process; the child waits for its end before it times anything.

    Returns:
        The answers by task; ask with the same task objects.

    Raises:
        DataError: the data cannot be read or is not what the model wants.
        UnsupportedError: ONNX Runtime cannot load or run a model.
        RuntimeError: the child ended without an answer to every task.
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
    """Send that nothing else runs here; a child that has failed already does not read it."""
    if child.stdin is None:
        raise AssertionError("the child has no stdin")
    with suppress(BrokenPipeError):
        child.stdin.write("quiet\n")
    with suppress(BrokenPipeError):
        # Closing flushes; left to the interpreter, its error would hide the child's own.
        child.stdin.close()


def _messages(child: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    if child.stdout is None:
        raise AssertionError("the child has no stdout")
    for line in child.stdout:
        yield json.loads(line)
    child.wait()
