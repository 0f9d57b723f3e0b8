"""Load, time and run files in ONNX Runtime: the child process of :mod:`ort_process`.

Everything runs on the CPU and without torch. One session is alive at a time, but for two while a
pair of files is timed; big files are timed with one session, too, loaded again for each round.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from qtool.errors import (
    QtoolError,
    StorageError,
    UnsupportedError,
    is_out_of_memory,
    out_of_memory,
    storage_error,
)
from qtool.metrics.fidelity import finite_powers
from qtool.quant.quantized_io import QuantizedIO, read_quantized_io
from qtool.verification.latency.timing_script import (
    BIG_ROUNDS,
    ROUNDS,
    WARM_UP,
    LoadedFiles,
    time_in_turn,
)
from qtool.verification.tasks import (
    Capture,
    CaptureResult,
    ComparedOutputs,
    CompareOutputs,
    Evaluate,
    EvaluateResult,
    LatencyResult,
    Optimize,
    OptimizeResult,
    Profile,
    ProfileResult,
    Samples,
    Slice,
    TimePair,
    read_tasks,
)

# Evaluation batches: at most BATCH_ROWS rows, and BATCH_ELEMENTS input elements (16 MB of float32).
BATCH_ROWS = 16
BATCH_ELEMENTS = 1 << 22

# Float outputs that wait in memory to be compared.
MAX_OUTPUT_BYTES = 1 << 28


def _send(**message: Any) -> None:
    """Send one message to the parent: a line of JSON on stdout."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _session(
    path: str, threads: int, optimized: str | None = None, big: bool = False, profile: str = ""
) -> Any:
    import onnxruntime as ort

    from qtool.runtime.ort_options import session_options

    options = session_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = optimized
    if optimized is not None and big:
        prefix = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{prefix}file_name", f"{Path(optimized).name}.data")
        options.add_session_config_entry(f"{prefix}min_size_in_bytes", "1024")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The exceptions of onnxruntime have no common base class.
        raise _cannot(f"load {path}", error) from error


def _run(
    session: Any, outputs: Sequence[str] | None, feeds: dict[str, Any], path: str
) -> list[Any]:
    try:
        arrays: list[Any] = session.run(outputs, feeds)
    except Exception as error:
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        raise _cannot(f"run {path} on inputs {shapes}", error) from error
    return arrays


def _cannot(done: str, error: Exception) -> QtoolError:
    text = f"ONNX Runtime cannot {done}: {error}"
    return out_of_memory(text) if is_out_of_memory(error) else UnsupportedError(text)


def _feeds(batch: dict[str, np.ndarray], session: Any) -> dict[str, np.ndarray]:
    """Return the inputs of the file from a batch, as codes where the file reads codes."""
    feeds = _quantized_io(session).feeds(batch)
    return {i.name: feeds[i.name] for i in session.get_inputs() if i.name in feeds}


def _quantized_io(session: Any) -> QuantizedIO:
    return read_quantized_io(session.get_modelmeta().custom_metadata_map)


@singledispatch
def perform(task: Any) -> Any:
    """Perform one task and return its result.

    Raises:
        QtoolError: the data or a model cannot be read or run.
    """
    raise AssertionError(f"{type(task).__name__} is no task")


@perform.register
def optimize(task: Optimize) -> OptimizeResult:
    """Write the graph that ONNX Runtime executes, and time how long the file loads."""
    _session(task.model, task.threads, task.optimized, task.big)
    start = time.perf_counter()
    _session(task.model, task.threads)
    return OptimizeResult(time.perf_counter() - start)


@perform.register
def time_pair(task: TimePair) -> LatencyResult:
    """Time two files in turn (A B B A ...) on one batch, once the parent is idle."""
    with np.load(task.feeds) as archive:
        batch = {name: archive[name] for name in archive.files}
    sys.stdin.readline()
    paths = {"float": task.float_model, "quantized": task.quantized_model}
    rounds = BIG_ROUNDS if task.big else ROUNDS

    def load(name: str) -> Callable[[], object]:
        session = _session(paths[name], task.threads)
        feeds = _feeds(batch, session)
        return lambda: _run(session, None, feeds, paths[name])

    files = LoadedFiles(load, task.big)
    medians, runs = time_in_turn(
        files,
        {name: files.seconds(name, 1)[0] for name in paths},
        rounds,
        lambda done: _send(progress=["latency", done, rounds]),
    )
    return LatencyResult(
        float_ms=medians["float"],
        quantized_ms=medians["quantized"],
        speedup=medians["float"] / medians["quantized"],
        runs=runs,
        batch=task.batch,
        threads=task.threads,
    )


@perform.register
def profile(task: Profile) -> ProfileResult:
    """Time each kernel of a file on one batch, by ONNX Runtime's profiler."""
    with np.load(task.feeds) as archive:
        batch = {name: archive[name] for name in archive.files}
    session = _session(task.model, task.threads, profile=str(Path(task.folder) / "profile"))
    feeds = _feeds(batch, session)
    for done in range(WARM_UP + task.runs):
        _run(session, None, feeds, task.model)
        _send(progress=["profile", max(0, done + 1 - WARM_UP), task.runs])
    times: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in _events(Path(session.end_profiling())):
        name, _, phase = str(event.get("name", "")).rpartition("_kernel_")
        if event.get("cat") == "Node" and phase == "time":
            times.setdefault(name, []).append(event["dur"] / 1e3)
            operators[name] = event["args"]["op_name"]
    return ProfileResult(
        {name: float(np.median(runs[WARM_UP:] or runs)) for name, runs in times.items()}, operators
    )


def _events(path: Path) -> Any:
    """Return the events of a profile, which on a full disk ONNX Runtime cuts short in silence.

    Raises:
        StorageError: the file is not whole.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        text = f"{path}: the profile is not whole ({error}); free space there, or choose --out"
        raise StorageError(text) from error


@perform.register
def capture(task: Capture) -> CaptureResult:
    """Save named outputs batch by batch."""
    session, dataset = _session(task.model, task.threads), task.samples.open()
    files = 0
    for batch, _ in dataset.calls(task.rows, task.samples.fixed_batch is not None):
        feeds = _feeds(batch, session)
        outputs = _run(session, task.outputs, feeds, task.model)
        arrays = {f"o{k}": array for k, array in enumerate(outputs)}
        arrays.update({f"i:{name}": batch[name] for name in feeds})
        arrays.update({f"c:{name}": feeds[name] for name in _quantized_io(session).inputs})
        np.savez(Path(task.folder) / f"{files}.npz", **arrays)
        files += 1
        _send(progress=["parity capture", min(files * task.rows, dataset.count), dataset.count])
    return CaptureResult(files)


@perform.register
def evaluate(task: Evaluate) -> EvaluateResult:
    """Save an output on all samples."""
    session, dataset = _session(task.model, task.threads), task.samples.open()
    rows, io = task.rows or _rows(task.samples, dataset.count), _quantized_io(session)
    rows = max(1, rows // 2) if task.halved else rows
    names = [session.get_outputs()[task.output].name, *dataset.fed_back]

    def compute(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = _run(session, names, _feeds(batch, session), task.model)
        return {name: io.values(name, each) for name, each in zip(names, arrays, strict=True)}

    saved: np.memmap | None = None
    done = 0
    for output, valid in dataset.outputs(compute, names[0], rows, task.samples.fixed_batch):
        if saved is None:
            shape = (dataset.count, *output.shape[1:])
            saved = _mapped(task.path, output.dtype, shape)
        if len(output) != valid or output.shape[1:] != saved.shape[1:]:
            raise UnsupportedError(
                f"{task.model}: the output {names[0]} has shape {list(output.shape)} for {valid} "
                f"samples, expected {[valid, *saved.shape[1:]]}; the batch must be its first axis"
            )
        saved[done : done + valid] = output
        done += valid
        _send(progress=[f"evaluate {task.name}", done, dataset.count])
    if saved is not None:
        saved.flush()
    return EvaluateResult(done)


def _mapped(path: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Return an array in a new .npy file, whose space on the disk is reserved.

    Raises:
        OSError: the disk has too little; writing to a mapped page of it would be a bus error.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return array


@perform.register
def compare_outputs(task: CompareOutputs) -> ComparedOutputs:
    """Sum the powers of the float outputs and of the quantized file's differences from them."""
    dataset = task.samples.open()
    session = _session(task.float_model, task.threads)
    names = [value.name for value in session.get_outputs()]
    batches, waiting = [], 0
    for batch, _ in dataset.calls(task.rows, task.samples.fixed_batch is not None):
        expected = _run(session, names, _feeds(batch, session), task.float_model)
        batches.append((batch, dict(zip(names, expected, strict=True))))
        waiting += sum(getattr(array, "nbytes", 0) for array in expected)
        if waiting > MAX_OUTPUT_BYTES:
            break
    del session  # its memory is free before the other file is loaded
    session = _session(task.quantized_model, task.threads)
    io, present = _quantized_io(session), [value.name for value in session.get_outputs()]
    powers: list[tuple[float, float] | None] = [(0.0, 0.0)] * len(task.slices)
    for done, (batch, reference) in enumerate(batches, 1):
        arrays = _run(session, present, _feeds(batch, session), task.quantized_model)
        outputs = {n: io.values(n, array) for n, array in zip(present, arrays, strict=True)}
        for k, part in enumerate(task.slices):
            pair = reference.get(part.output), outputs.get(part.output)
            powers[k] = _added(powers[k], _slice_powers(part, *pair))
        _send(progress=["compare outputs", done, len(batches)])
    return ComparedOutputs(tuple(powers), min(len(batches) * task.rows, dataset.count))


def _slice_powers(part: Slice, expected: Any, test: Any) -> tuple[float, float] | None:
    """Return (signal, noise) of one slice; None for outputs that are no floats of one shape."""
    arrays = isinstance(expected, np.ndarray) and isinstance(test, np.ndarray)
    if not arrays or expected.dtype.kind != "f" or expected.shape != test.shape:
        return None
    if part.axis is not None:
        index = (*(slice(None),) * part.axis, slice(part.start, part.stop))
        expected, test = expected[index], test[index]
    return finite_powers(expected, test)


def _added(
    a: tuple[float, float] | None, b: tuple[float, float] | None
) -> tuple[float, float] | None:
    return None if a is None or b is None else (a[0] + b[0], a[1] + b[1])


def _rows(samples: Samples, count: int) -> int:
    """Return the number of samples for one batch."""
    elements = max(
        int(np.prod([d for d in spec.sample if isinstance(d, int)]))
        for spec in samples.specs.values()
    )
    return int(min(max(BATCH_ELEMENTS // elements, 1), BATCH_ROWS, count))


def main(jobs: str) -> None:
    """Perform the tasks in a file, and send results and errors to the parent as JSON lines."""
    import resource
    from dataclasses import asdict

    for task in read_tasks(Path(jobs)):
        try:
            result = perform(task)
        except QtoolError as error:
            _send(error=type(error).__name__, text=str(error))
            return
        except MemoryError:
            failure = out_of_memory(f"the task {type(task).__name__} of the verifying process")
            _send(error=type(failure).__name__, text=str(failure))
            return
        except OSError as error:
            refusal = storage_error(error)
            if refusal is None:
                raise
            _send(error=type(refusal).__name__, text=str(refusal))
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _send(result=asdict(result), peak_rss_mb=round(peak / 1024))


if __name__ == "__main__":
    main(sys.argv[1])
