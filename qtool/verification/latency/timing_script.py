"""Time two ONNX files in turn in one runtime; needs Python, numpy and that runtime, nothing else.

It is imported by the verifying process, started as a child process for each runtime, and sent to
other machines over ssh, where there is no qtool. Therefore it imports nothing of qtool, and stays
within Python 3.8:

    python timing_script.py probe          print the machine and its runtimes
    python timing_script.py serve FOLDER   perform the jobs in FOLDER/jobs.json, each in a child
    python timing_script.py time JOB       perform one job
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any, Callable, Dict  # noqa: UP035

# ONNX Runtime sends usage data to its maker, unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# ROUNDS alternations; at least RUNS runs of each file unless they would take MAX_SECONDS, and more
# where those take less than MIN_SECONDS.
ROUNDS = 10
RUNS = 50
MIN_SECONDS = 0.3
MAX_SECONDS = 5.0
WARM_UP = 2  # runs that are not counted: the first ones allocate memory

# A big file is loaded again for each round, which takes seconds.
BIG_ROUNDS = 2

JOB_SECONDS = 300
"""A job that takes longer is stopped: loading two files and at least 2 * RUNS runs."""
REASON = 300
"""Characters of an error message at most."""

Run = Callable[[], object]
Load = Callable[[str], Run]
Row = Dict[str, Any]  # noqa: UP006


class LoadedFiles:
    """Files that are loaded when they first run; of big ones one at a time is in memory."""

    def __init__(self, load: Load, big: bool = False) -> None:
        self._load, self._big = load, big
        self._alive: dict[str, Run] = {}

    def seconds(self, name: str, times: int) -> list[float]:
        """Run a file ``times`` times; return the seconds of each run."""
        if name not in self._alive:
            if self._big:
                self._alive.clear()  # frees the other file's memory before this one is loaded
            run = self._alive[name] = self._load(name)
            for _ in range(WARM_UP):
                run()
        run, seconds = self._alive[name], []
        for _ in range(times):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return seconds


def time_in_turn(
    files: LoadedFiles, once: dict[str, float], rounds: int, on_round: Callable[[int], None]
) -> tuple[dict[str, float], int]:
    """Time files in turn, A B B A ..., so that drift of the machine affects all of them.

    Args:
        files: to time.
        once: seconds of one run of each file, by name, at least one.
        rounds: alternations.
        on_round: called with the number of finished rounds.

    Returns:
        The median milliseconds of each file, and the number of runs.
    """
    total = sum(once.values())
    count = min(max(RUNS, MIN_SECONDS / total), MAX_SECONDS / total)
    runs = max(round(count / rounds), 1)
    times: dict[str, list[float]] = {name: [] for name in once}
    for done in range(rounds):
        for name in once if done % 2 else reversed(once):
            times[name] += files.seconds(name, runs)
        on_round(done + 1)
    return {name: 1e3 * _median(seconds) for name, seconds in times.items()}, runs * rounds


def _median(values: list[float]) -> float:
    middle = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return sum(middle) / len(middle)


def load_onnxruntime(path: str, feeds: dict[str, Any], threads: int, provider: str) -> Run:
    """Load a file in ONNX Runtime; return what runs it on ``feeds``.

    Args:
        path: of the file.
        feeds: inputs by name; those that the file lacks are left out.
        threads: that compute.
        provider: the execution provider, as ONNX Runtime names it.

    Raises:
        RuntimeError: ONNX Runtime replaced the provider by another.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # fatal only: errors are raised anyhow
    # Files in turn would wait for each other's spinning threads.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    settings: dict[str, str] = {}
    if provider == "XnnpackExecutionProvider":  # it has threads of its own
        options.intra_op_num_threads = 1
        settings = {"intra_op_num_threads": str(threads)}
    if provider == "OpenVINOExecutionProvider":
        settings = {"device_type": "CPU", "num_of_threads": str(threads), "precision": "FP32"}
    session = ort.InferenceSession(path, options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime could not start {provider}")
    own = {each.name: feeds[each.name] for each in session.get_inputs() if each.name in feeds}
    return lambda: session.run(None, own)


def load_openvino(path: str, feeds: dict[str, Any], threads: int, provider: str) -> Run:
    """Load a file in OpenVINO's CPU plugin, its shapes fixed to those of ``feeds``.

    Floats are computed as float32, as the file says: by default the plugin takes bfloat16 where the
    processor multiplies it. Arguments as of :func:`load_onnxruntime`.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    names = [each.get_any_name() for each in model.inputs]
    own = {name: feeds[name] for name in names}
    model.reshape({name: list(array.shape) for name, array in own.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer(own, share_inputs=True, share_outputs=True)


LOADERS = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}
"""Runtime -> the function that loads a file in it; other names are execution providers of ONNX
Runtime."""


def time_job(job: Row) -> Row:
    """Time the files of a job in turn in its runtime.

    Args:
        job: ``runtime, threads, batch``; ``files`` and ``feeds`` by the same names: paths of ONNX
            files and of .npz files; ``big``: one file is in memory at a time.

    Returns:
        ``ms``: median by name, ``runs``, and ``reasons``: by name, of files that cannot be run.
    """
    load = LOADERS.get(job["runtime"], load_onnxruntime)
    provider = "CPUExecutionProvider" if job["runtime"] in LOADERS else job["runtime"]

    def load_file(name: str) -> Run:
        return load(job["files"][name], _arrays(job["feeds"][name]), job["threads"], provider)

    files, reasons = LoadedFiles(load_file, job["big"]), {}
    once: dict[str, float] = {}
    for name in job["files"]:
        try:
            once[name] = files.seconds(name, 1)[0]
        except Exception as error:  # runtimes raise what they like, without a common base
            reasons[name] = shorten(str(error) or type(error).__name__)
    ms: dict[str, float] = {}
    runs = 0
    if once:
        rounds = BIG_ROUNDS if job["big"] else ROUNDS
        ms, runs = time_in_turn(files, once, rounds, lambda done: None)
    return {"ms": ms, "runs": runs, "reasons": reasons}


def _arrays(path: str) -> dict[str, Any]:
    import numpy as np

    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def shorten(text: str) -> str:
    """Return an error message in one line, without the source lines that OpenVINO begins with."""
    lines = [line.strip() for line in text.splitlines()]
    line = " ".join(line for line in lines if line and not line.startswith("Exception from "))
    return line if len(line) <= REASON else f"{line[: REASON - 3]}..."


def perform(job: Row, path: str) -> Row:
    """Perform a job in a child process, so that a runtime that crashes ends only its own job.

    Args:
        job: as for :func:`time_job`.
        path: a file to write the job to.
    """
    with open(path, "w") as file:
        json.dump(job, file)
    command = [sys.executable, os.path.abspath(__file__), "time", path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=JOB_SECONDS)
    except subprocess.TimeoutExpired:
        return _failed(job, f"no result within {JOB_SECONDS} s")
    if done.returncode == 0:
        result: Row = json.loads(done.stdout.decode().splitlines()[-1])
        return result
    last = shorten(done.stderr.decode(errors="replace")[-REASON:])
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return _failed(job, f"the process ended with {how}" + (f": {last}" if last else ""))


def _failed(job: Row, reason: str) -> Row:
    return {"ms": {}, "runs": 0, "reasons": dict.fromkeys(job["files"], reason)}


def serve(folder: str) -> None:
    """Perform the jobs in ``folder``, whose paths are relative to it; print each result."""
    with open(os.path.join(folder, "jobs.json")) as file:
        jobs = json.load(file)
    for job in jobs:
        for key in ("files", "feeds"):
            job[key] = {name: os.path.join(folder, path) for name, path in job[key].items()}
        print(json.dumps(perform(job, os.path.join(folder, "job.json"))), flush=True)


def probe() -> Row:
    """Return processor, cores, Python, versions of the runtimes, and execution providers."""
    versions, providers = {}, []
    for name in LOADERS:
        # An installation that cannot be imported, for whatever reason, counts as none.
        with contextlib.suppress(Exception):
            runtime = importlib.import_module(name)
            versions[name] = runtime.__version__.partition("-")[0]
            if name == "onnxruntime":
                providers = list(runtime.get_available_providers())
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "cpu": _processor(),
        "cores": len(usable) or os.cpu_count() or 1,
        "python": platform.python_version(),
        "versions": versions,
        "providers": providers,
    }


def _processor() -> str:
    names: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                names.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    # "Model" is the board of a Raspberry Pi, whose processor has no name.
    return names.get("model name") or names.get("Model") or platform.machine()


def main(arguments: list[str]) -> None:
    """Perform the command of the module's docstring."""
    if arguments[0] == "probe":
        print(json.dumps(probe()))
    elif arguments[0] == "serve":
        serve(arguments[1])
    else:
        with open(arguments[1]) as file:
            job = json.load(file)
        print(json.dumps(time_job(job)))


if __name__ == "__main__":
    main(sys.argv[1:])
