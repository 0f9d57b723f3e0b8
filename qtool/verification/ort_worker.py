"""ONNX Runtime judges the file: a child process loads it, times it, runs it on data.

Everything here runs on the CPU, apart from torch, and with one session alive at a time except while
two files are timed against each other; big files are timed in turn, so that there it holds too. The
parent writes a list of tasks, the child answers in JSON lines; arrays travel through files.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from qtool.errors import DataError, ModelError, QtoolError, RecipeError, UnsupportedError
from qtool.progress import Progress, silent

if TYPE_CHECKING:
    from qtool.data import Dataset
    from qtool.quant.quantized_io import QuantizedIO

# Latency: ROUNDS alternations; at least RUNS runs of each file unless they would take MOST_SECONDS,
# and more where a run is so short that LEAST_SECONDS are not filled.
ROUNDS = 10
RUNS = 50
LEAST_SECONDS = 0.3
MOST_SECONDS = 5.0
WARM = 2

# A big file is loaded anew for each of its turns, which costs seconds.
BIG_ROUNDS = 2

# Evaluation batches: enough rows to keep the kernels busy, few enough to stay small.
BATCH_ROWS = 16
BATCH_ELEMENTS = 1 << 22

FAILURES: dict[str, type[QtoolError]] = {
    kind.__name__: kind for kind in (DataError, ModelError, RecipeError, UnsupportedError)
}


def run_tasks(
    tasks: Sequence[dict[str, Any]],
    folder: Path,
    progress: Progress = silent,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Run tasks in a child process, in order.

    Args:
        tasks: see TASKS for the kinds and their keys.
        folder: a scratch folder both may write to.
        progress: told about every task.
        meanwhile: work for this process; the child waits for its end before it times anything.

    Returns:
        One result per task, with the child's peak memory as ``peak_rss_mb`` in the last.

    Raises:
        DataError: the data cannot be read or is not what the model wants.
        UnsupportedError: ONNX Runtime cannot load or run a model.
        RuntimeError: the child died without a word.
    """
    jobs = folder / "tasks.json"
    jobs.write_text(json.dumps(list(tasks)))
    errors = folder / "stderr.txt"
    results: list[dict[str, Any]] = []
    with errors.open("w") as stderr, _child(jobs, stderr) as child:
        try:
            meanwhile()
            _say_quiet(child)
            for message in _messages(child):
                if "progress" in message:
                    progress(*message["progress"])
                elif "error" in message:
                    raise FAILURES[message["error"]](message["text"])
                else:
                    results.append(message["result"])
        finally:
            with suppress(ProcessLookupError):
                child.kill()
    if len(results) != len(tasks):
        raise RuntimeError(
            f"the verifying process ended with {child.returncode} during task {len(results) + 1} "
            f"of {len(tasks)} ({tasks[min(len(results), len(tasks) - 1)]['kind']}):\n"
            f"{errors.read_text()[-4000:]}"
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


def _say_quiet(child: "subprocess.Popen[str]") -> None:
    """Tell the child that nothing else runs here; one that has failed already does not listen."""
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


# What follows runs in the child.


def _tell(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _session(path: str, threads: int, optimized: str | None = None, big: bool = False) -> Any:
    import onnxruntime as ort

    from qtool.runtime.ort_options import session_options

    options = session_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = optimized
    if optimized is not None and big:
        beside = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{beside}file_name", f"{Path(optimized).name}.data")
        options.add_session_config_entry(f"{beside}min_size_in_bytes", "1024")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's errors share no base class of their own.
        raise UnsupportedError(f"ONNX Runtime cannot load {path}: {error}") from error


def _run(session: Any, outputs: list[str] | None, feeds: dict[str, Any], path: str) -> list[Any]:
    try:
        found: list[Any] = session.run(outputs, feeds)
    except Exception as error:
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        raise UnsupportedError(
            f"ONNX Runtime cannot run {path} on inputs {shapes}: {error}"
        ) from error
    return found


def _dataset(task: dict[str, Any]) -> "Dataset":
    from qtool.data import DataSection, InputSpec, open_dataset

    inputs = {name: InputSpec(name, tuple(shape), dtype) for name, shape, dtype in task["inputs"]}
    section = DataSection.model_validate(task["section"])
    dataset = open_dataset(section, inputs, trust_code=task["trust_code"])
    return dataset.take(task["indices"])


def _feeds(batch: dict[str, np.ndarray], session: Any) -> dict[str, np.ndarray]:
    """What the file reads of a batch, as codes where it reads codes."""
    found = _ends(session).feeds(batch)
    return {i.name: found[i.name] for i in session.get_inputs() if i.name in found}


def _ends(session: Any) -> "QuantizedIO":
    from qtool.quant.quantized_io import read_quantized_io

    return read_quantized_io(session.get_modelmeta().custom_metadata_map)


def _optimize(task: dict[str, Any]) -> dict[str, Any]:
    """Write the graph ONNX Runtime really executes. Keys: model, optimized, threads, big."""
    _session(task["model"], task["threads"], task["optimized"], task["big"])
    start = time.perf_counter()
    _session(task["model"], task["threads"])
    return {"load_seconds": time.perf_counter() - start}


def _latency(task: dict[str, Any]) -> dict[str, Any]:
    """Time two files A B B A on one batch. Keys: float, quantized, feeds (.npz), threads, big."""
    with np.load(task["feeds"]) as archive:
        batch = {name: archive[name] for name in archive.files}
    sys.stdin.readline()
    rounds = BIG_ROUNDS if task["big"] else ROUNDS
    alive: dict[str, Any] = {}

    def run(which: str, times: int) -> list[float]:
        """Seconds of every run; the other file's session goes first where both are too much."""
        if task["big"] and which not in alive:
            alive.clear()
        if which not in alive:
            alive[which] = _session(task[which], task["threads"])
            run(which, WARM)
        found = []
        feeds = _feeds(batch, alive[which])
        for _ in range(times):
            start = time.perf_counter()
            _run(alive[which], None, feeds, task[which])
            found.append(time.perf_counter() - start)
        return found

    names = ("float", "quantized")
    warm = sum(run(which, 1)[0] for which in names)
    wished = min(max(RUNS, LEAST_SECONDS / warm), MOST_SECONDS / warm)
    runs = max(round(wished / rounds), 1)
    times: dict[str, list[float]] = {which: [] for which in names}
    for done in range(rounds):
        for which in names if done % 2 else reversed(names):
            times[which] += run(which, runs)
        _tell(progress=["latency", done + 1, rounds])
    medians = {which: float(np.median(found)) * 1e3 for which, found in times.items()}
    return {
        "float_ms": medians["float"],
        "quantized_ms": medians["quantized"],
        "speedup": medians["float"] / medians["quantized"],
        "runs": runs * rounds,
        "batch": len(next(iter(batch.values()))),
        "threads": task["threads"],
    }


def _capture(task: dict[str, Any]) -> dict[str, Any]:
    """Save named outputs sample by sample. Keys: model, outputs, out, threads, and the data's."""
    session = _session(task["model"], task["threads"])
    names, dataset = task["outputs"], _dataset(task)
    rows = task["batch"]
    saved = 0
    for batch, _ in dataset.padded(rows):
        feeds = _feeds(batch, session)
        found = _run(session, names, feeds, task["model"])
        arrays = {f"o{k}": array for k, array in enumerate(found)}
        arrays.update({f"i:{name}": batch[name] for name in feeds})
        arrays.update({f"c:{name}": feeds[name] for name in _ends(session).inputs})
        np.savez(Path(task["out"]) / f"{saved}.npz", **arrays)
        saved += 1
        _tell(progress=["parity capture", min(saved * rows, dataset.count), dataset.count])
    return {"saved": saved}


def _evaluate(task: dict[str, Any]) -> dict[str, Any]:
    """Save the first output on all samples.

    Keys: model, out, name, threads, rows (a batch; absent: as many as fit), and the data's.
    """
    session = _session(task["model"], task["threads"])
    dataset = _dataset(task)
    fixed = next((s[1][0] for s in task["inputs"] if s[1] and isinstance(s[1][0], int)), None)
    elements = max(
        (int(np.prod([d for d in s[1][1:] if isinstance(d, int)])) for s in task["inputs"]),
        default=1,
    )
    rows = (
        fixed
        or task.get("rows")
        or int(min(max(BATCH_ELEMENTS // elements, 1), BATCH_ROWS, dataset.count))
    )
    first, ends = [session.get_outputs()[0].name], _ends(session)
    saved: np.memmap | None = None
    done = 0
    for batch, valid in dataset.padded(rows):
        found = _run(session, first, _feeds(batch, session), task["model"])[0][:valid]
        found = ends.values(first[0], found)
        if saved is None:
            shape = (dataset.count, *found.shape[1:])
            saved = np.lib.format.open_memmap(task["out"], "w+", found.dtype, shape)
        if len(found) != valid or found.shape[1:] != saved.shape[1:]:
            raise UnsupportedError(
                f"{task['model']}: the first output has shape {list(found.shape)} for {valid} "
                f"samples, expected {[valid, *saved.shape[1:]]}; the batch must be its first axis"
            )
        saved[done : done + valid] = found
        done += valid
        _tell(progress=[f"evaluate {task['name']}", done, dataset.count])
    if saved is not None:
        saved.flush()
    return {"samples": done}


TASKS = {
    "optimize": _optimize,
    "latency": _latency,
    "capture": _capture,
    "evaluate": _evaluate,
}


def main(jobs: str) -> None:
    """Run the tasks in a file, one JSON line per message; the parent reads them."""
    import resource

    for task in json.loads(Path(jobs).read_text()):
        try:
            result = TASKS[task["kind"]](task)
        except QtoolError as error:
            _tell(error=type(error).__name__, text=str(error))
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _tell(result={**result, "peak_rss_mb": round(peak / 1024)})


if __name__ == "__main__":
    main(sys.argv[1])
