"""ONNX Runtime sessions, and files timed in turn."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qtool.data import InputSpec
from qtool.runtime.ort_options import session_options


def session(path: Path, threads: int = 1, optimized: Path | None = None) -> ort.InferenceSession:
    """Create a CPU session; write the graph that it executes to ``optimized``, if not None."""
    options = session_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_of(run: ort.InferenceSession) -> dict[str, InputSpec]:
    """Return name, shape and type of each input."""
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64"}
    return {i.name: InputSpec(i.name, tuple(i.shape), kinds[i.type]) for i in run.get_inputs()}


def in_turn(
    runs: Sequence[ort.InferenceSession],
    feeds: dict[str, np.ndarray],
    rounds: int,
    seconds: float,
    least: int,
    of_block: Callable[[list[float]], float],
) -> list[list[float]]:
    """Time sessions in turn, so that drift of the machine affects all of them.

    Args:
        runs: timed one after the other in every round.
        feeds: of one run.
        rounds: turns of every session.
        seconds: length of a turn; its runs are one block.
        least: smallest number of runs in a block.
        of_block: reduces the runs of a block to one number (``min``, ``statistics.median``).

    Returns:
        Milliseconds of every session in every round.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for k, run in enumerate(runs):
            seconds_of_runs: list[float] = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(seconds_of_runs) < least:
                start = time.perf_counter()
                run.run(None, feeds)
                seconds_of_runs.append(time.perf_counter() - start)
            times[k].append(1e3 * of_block(seconds_of_runs))
    return times
