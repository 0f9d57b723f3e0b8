"""ONNX Runtime sessions, and files timed in turn."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qtool.data import InputSpec
from qtool.runtime.ort_options import session_options


def session(path: Path, threads: int = 1, optimized: Path | None = None) -> ort.InferenceSession:
    """A session on the CPU; the graph that really runs is written to ``optimized``, if given."""
    options = session_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_of(run: ort.InferenceSession) -> dict[str, InputSpec]:
    """What data must fit, by name."""
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
    """Milliseconds of every session in every round, so that drift of the machine meets all alike.

    Args:
        runs: timed one after the other in every round.
        feeds: of one run.
        rounds: how often every session has its turn.
        seconds: how long a turn takes; its runs are a block.
        least: runs in a block, however long they take.
        of_block: makes one number of a block's runs (``min``, ``statistics.median``).
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for k, run in enumerate(runs):
            found: list[float] = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(found) < least:
                start = time.perf_counter()
                run.run(None, feeds)
                found.append(time.perf_counter() - start)
            times[k].append(1e3 * of_block(found))
    return times
