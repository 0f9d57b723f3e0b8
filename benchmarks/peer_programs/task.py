"""Read what a peer's program quantizes, and print what it took.

A program is run as `python -m benchmarks.peer_programs.NAME SETTING SOURCE SAMPLES TARGET THREADS
NETWORK` by an interpreter that has the tool, onnx and numpy; nothing of qtool is imported here.
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

Feed = dict[str, np.ndarray]

# The transformers among the networks; some tools ask for the kind of network.
TRANSFORMERS = ("sst2_transformer2l", "minilm_l6_sst2")


@dataclass(frozen=True)
class Task:
    """One network that a tool quantizes.

    Attributes:
        source: the float model.
        feeds: calibration samples, each a batch of one.
        target: the file to write.
        threads: of every session.
        network: its name.
    """

    source: Path
    feeds: Sequence[Feed]
    target: Path
    threads: int
    network: str

    @property
    def is_transformer(self) -> bool:
        """Whether the network is a transformer."""
        return self.network in TRANSFORMERS

    def batches(self, size: int) -> list[Feed]:
        """Return the calibration samples in batches of a size; the last may be smaller."""
        parts = [self.feeds[k : k + size] for k in range(0, len(self.feeds), size)]
        return [{n: np.concatenate([f[n] for f in part]) for n in part[0]} for part in parts]


def read_samples(path: str, kind: str = "") -> list[Feed]:
    """Return the samples of an archive, each a batch of one.

    Args:
        path: of the archive; every array is [samples, ...].
        kind: prefix of the arrays' names; arrays of another prefix are left out.
    """
    with np.load(path) as archive:
        arrays = {n[len(kind) :]: archive[n] for n in archive.files if n.startswith(kind)}
    count = len(next(iter(arrays.values())))
    return [{n: a[k : k + 1] for n, a in arrays.items()} for k in range(count)]


def outer_weights(model: onnx.ModelProto) -> list[str]:
    """Return the constant weights of the first and of the last Conv, Gemm or MatMul."""
    constants = {tensor.name for tensor in model.graph.initializer}
    weights = [
        node.input[1]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constants
    ]
    return [weights[0], weights[-1]]


def run_program(settings: Sequence[Callable[[Task], None]], packages: Sequence[str]) -> None:
    """Quantize as the command line says; print seconds and versions as the last line, JSON.

    The only word "versions" quantizes nothing.

    Args:
        settings: functions that write the target, named as the settings are.
        packages: whose versions are printed.
    """
    if sys.argv[1:] == ["versions"]:
        return print_result(0.0, packages)
    setting, source, samples, target, threads, network = sys.argv[1:]
    chosen = {each.__name__: each for each in settings}[setting]
    task = Task(Path(source), read_samples(samples), Path(target), int(threads), network)
    start = time.perf_counter()
    chosen(task)
    print_result(time.perf_counter() - start, packages)


def print_result(seconds: float, packages: Sequence[str]) -> None:
    """Print seconds and the packages' versions as one line of JSON."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    print("\n" + json.dumps({"seconds": seconds, "versions": versions}))
