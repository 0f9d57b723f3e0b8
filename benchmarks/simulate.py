"""Seconds to simulate a quantized network: quiet and beside a busy process, spinning or not.

    QTOOL_DATA=... python -m benchmarks.simulate

``spinning`` is how OpenMP threads wait by default, ``passive`` is what the command line sets
(OMP_WAIT_POLICY); 512 samples are the default of evaluate.simulate, 10,000 the whole test set of
CIFAR-10. Writes benchmarks/results/simulate.md.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import qtool
from benchmarks.machine import heading, results_folder, table
from benchmarks.networks import data_folder

ROUNDS = 3
BATCH = 32
SAMPLES = (512, 10_000)
BUSY = "while True: pass"


def simulate(model: Path, samples: int) -> float:
    """Return the seconds that this process takes to simulate so many random samples."""
    loaded = qtool.load(model)
    images = np.random.default_rng(0).normal(size=(BATCH, 3, 32, 32)).astype(np.float32)
    network = qtool.simulate(loaded, qtool.quantize(loaded, [images]))
    network(images)
    start = time.perf_counter()
    for _ in range(-(-samples // BATCH)):
        network(images)
    return time.perf_counter() - start


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many other processes busy."""
    children = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def measure(samples: int, policy: str, neighbours: int) -> float:
    """Return the median seconds over ROUNDS processes."""
    environment = {**os.environ, **({"OMP_WAIT_POLICY": policy} if policy else {})}
    words = [sys.executable, "-m", "benchmarks.simulate", str(samples)]
    seconds = []
    with busy(neighbours):
        for _ in range(ROUNDS):
            done = subprocess.run(
                words, env=environment, check=True, capture_output=True, text=True
            )
            seconds.append(float(done.stdout.split()[-1]))
    return statistics.median(seconds)


def main() -> None:
    """Measure all rows, or in a child process one."""
    model = data_folder() / "models" / "resnet20.onnx"
    if len(sys.argv) > 1:
        print(simulate(model, int(sys.argv[1])))
        return
    rows = []
    for samples in SAMPLES:
        for name, policy in (("spinning", ""), ("passive", "PASSIVE")):
            quiet, beside = (measure(samples, policy, n) for n in (0, os.cpu_count() or 1))
            rows.append([f"{samples}", name, f"{quiet:.1f}", f"{beside:.1f}"])
            print(*rows[-1], flush=True)
    columns = ["samples", "threads wait", "quiet, s", "beside as many busy processes as cores, s"]
    title = "Seconds to simulate resnet20"
    text = heading(title, "python -m benchmarks.simulate") + "\n" + table(columns, rows)
    (results_folder() / "simulate.md").write_text(text)


if __name__ == "__main__":
    main()
