"""Seconds and memory of the calibration pass, relative to plain inference in the same process.

    QTOOL_DATA=... python -m benchmarks.calibration_pass [NETWORK ...] [--samples N] [--fresh]

Inputs are noise (sentences for MiniLM), made beforehand: nothing is decoded in the measured time.
Plain inference, min-max and all estimators together take turns (A B C A B C); CPU seconds stand
beside wall seconds, since other processes may run. onnxruntime's own calibrators run behind them,
each once and in a process of its own, on 64 samples, relative to plain inference of the same
samples; one that takes more than MAX_SECONDS or MAX_GIGABYTES is stopped, and its row says so. Rows
are saved, so a stopped run continues. Writes benchmarks/results/calibration_pass.md.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

import qtool
from benchmarks.baseline import Batches
from benchmarks.machine import heading, load_rows, results_folder, save_row, table
from benchmarks.networks import data_folder
from benchmarks.resnet import write
from qtool.annotation.annotator import annotate
from qtool.calibration import CALIBRATORS
from qtool.calibration.batch_size import batch_size, pass_elements
from qtool.calibration.collect import collect, observed_values
from qtool.calibration.statistics import estimate
from qtool.loading import bind_shapes, infer_shapes
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan
from qtool.rewrites import REWRITES
from qtool.runtime.ort_session import OrtSession
from qtool.targets.loader import load_target
from qtool.weights.grids import weight_grids

# Network -> file below QTOOL_DATA, and shape of a sample of noise, or file of arrays.
MODELS: dict[str, tuple[str, tuple[int, ...] | str]] = {
    "resnet20": ("models/resnet20.onnx", (3, 32, 32)),
    "mobilenet_v2_float": ("models/mobilenet_v2_float.onnx", (3, 224, 224)),
    "minilm_l6": ("built/minilm_l6_sst2.onnx", "sst2/minilm_train.npz"),
    "resnet50": ("", (3, 224, 224)),  # random weights, written to a temporary file
}
# Samples of onnxruntime's calibrators, of which two hold all activations in memory.
THEIRS = 64
# What one of them may take: seconds of CPU, and gigabytes.
MAX_SECONDS = 600
MAX_GIGABYTES = 8
THREADS = 2
ROUNDS = 3
LIMITS = {"minmax": 1.5, "all estimators": 2.0}
MAX_MEGABYTES = 300


class Pass:
    """A network as calibration sees it."""

    def __init__(self, name: str, samples: int) -> None:
        file, source = MODELS[name]
        self.file = data_folder() / file if file else _resnet50()
        model = qtool.load(self.file)
        rng, self.samples = np.random.default_rng(0), samples
        if isinstance(source, str):
            with np.load(data_folder() / source) as archive:
                feeds = {key: archive[key][:samples] for key in model.inputs}
        else:
            count = min(samples, THEIRS)
            key = next(iter(model.inputs))
            feeds = {key: rng.normal(0, 1, (count, *source)).astype(np.float32)}
        self.graph, target = model._graph.clone(), load_target("onnxruntime-cpu")
        bind_shapes(self.graph, {key: (1, *array.shape[1:]) for key, array in feeds.items()})
        for rewrite in target.rewrites:
            REWRITES[rewrite](self.graph, lambda node: True)
            infer_shapes(self.graph)
        self.plan: QuantPlan = weight_grids(self.graph, annotate(self.graph, target, Bits()))
        self.names = observed_values(self.graph, self.plan)
        self.rows = batch_size(pass_elements(self.graph, self.names), samples)
        self.feeds = {key: array[: self.rows] for key, array in feeds.items()}

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the same samples as often as there are batches."""
        for start in range(0, self.samples, self.rows):
            rows = min(self.rows, self.samples - start)
            yield {key: array[:rows] for key, array in self.feeds.items()}

    def plain(self) -> None:
        """Run the network as a user would, with its own output alone."""
        output: ir.Value = self.graph.graph.outputs[0]
        with OrtSession(self.graph, [output.name or ""], THREADS) as session:
            for batch in self.batches():
                session.stream(batch)

    def calibrate(self, names: list[str], histograms: bool) -> None:
        """Collect in one pass, and compute the grids of every value by the estimators."""
        batches = self.batches()
        stats = collect(self.graph, self.names, batches, histograms=histograms, threads=THREADS)
        for value, part in stats.items():
            for name in names:
                estimate(CALIBRATORS[name](), part, self.plan.spec(value))

    def onnxruntime(self, method: str, folder: Path) -> None:
        """Calibrate the file with a calibrator of onnxruntime."""
        prepared = folder / "prepared.onnx"
        if not prepared.exists():
            quant_pre_process(self.file, prepared, skip_symbolic_shape=True)
        calibrator = create_calibrator(
            str(prepared),
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod[method],
        )
        calibrator.collect_data(Batches(self.batches()))
        calibrator.compute_data()


def _resnet50() -> Path:
    path = Path(tempfile.gettempdir()) / "qtool_random_resnet50.onnx"
    return path if path.exists() else write(path, depth=50)


def estimators() -> list[str]:
    """Return the estimators that need no property of the network."""
    entries = CALIBRATORS.items()
    return [n for n, entry in entries if not entry.needs_batchnorm and not entry.needs_scores]


def measure(name: str, samples: int) -> dict[str, dict[str, float]]:
    """Return CPU and wall milliseconds a sample of each pass, medians of ROUNDS in turn."""
    network = Pass(name, samples)
    passes: dict[str, Callable[[], None]] = {
        "plain": network.plain,
        "minmax": lambda: network.calibrate(["minmax"], False),
        "all estimators": lambda: network.calibrate(estimators(), True),
        "statistics of all, no estimator": lambda: network.calibrate([], True),
    }
    seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in passes}
    for _ in range(ROUNDS):
        for key, run in passes.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            seconds[key].append((cpu, wall))
    result = {}
    for key, values in seconds.items():
        pairs = list(zip(values, seconds["plain"], strict=True))
        result[key] = {
            "cpu_ms": 1e3 * median(v[0] for v in values) / samples,
            "cpu_ratio": median(v[0] / p[0] for v, p in pairs),
            "wall_ratio": median(v[1] / p[1] for v, p in pairs),
        }
    return result


def measure_theirs(name: str, method: str) -> dict[str, float]:
    """Return CPU and wall time of a calibrator of onnxruntime, relative to plain inference."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_GIGABYTES << 30, MAX_GIGABYTES << 30))
    network, times = Pass(name, THEIRS), []
    # Histograms of onnxruntime need batches of one size: the largest that THEIRS is a multiple of.
    network.rows = 1 << (network.rows.bit_length() - 1)
    with tempfile.TemporaryDirectory() as folder:
        for run in (network.plain, lambda: network.onnxruntime(method, Path(folder))):
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
    plain, theirs = times
    return {
        "cpu_ms": 1e3 * theirs[0] / THEIRS,
        "cpu_ratio": theirs[0] / plain[0],
        "wall_ratio": theirs[1] / plain[1],
    }


def limited(name: str, method: str) -> dict[str, Any]:
    """Return the result of :func:`measure_theirs`, or why there is none."""
    line = [sys.executable, "-m", "benchmarks.calibration_pass", name, "--one", method]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if not done.returncode:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return {"stopped": f"more than {MAX_SECONDS} s of CPU"}
    if any(text in done.stderr for text in ("MemoryError", "bad_alloc", "allocate")):
        return {"stopped": f"more than {MAX_GIGABYTES} GB"}
    raise RuntimeError(f"{' '.join(line)} failed:\n{done.stderr}")


def peak_megabytes(name: str, samples: int, mode: str) -> float:
    """Return the peak resident memory of one pass, in a process of its own."""
    line = [sys.executable, "-m", "benchmarks.calibration_pass", name, "--peak", mode]
    done = subprocess.run(
        [*line, "--samples", str(samples)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


def own_peak_megabytes() -> float:
    """Return the peak resident memory of this program (ru_maxrss counts its parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def page(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the results page."""
    times: list[list[object]] = []
    memory: list[list[object]] = []
    for key, row in rows.items():
        for label, values in row.items():
            if "megabytes" in values:
                above = values["megabytes"] - values["plain"]
                met = "yes" if above <= MAX_MEGABYTES else "NO"
                memory.append([key, label, f"{values['plain']:.0f}", f"{above:.0f}", met])
                continue
            if "stopped" in values:
                times.append([key, label, values["stopped"], "", "", "", ""])
                continue
            limit = LIMITS.get(label)
            met = "" if limit is None else "yes" if values["cpu_ratio"] <= limit else "NO"
            ratios = [f"{values[name]:.2f}" for name in ("cpu_ratio", "wall_ratio")]
            times.append([key, label, f"{values['cpu_ms']:.2f}", *ratios, limit or "", met])
    text = heading("The calibration pass", "python -m benchmarks.calibration_pass")
    text += (
        f"\nNoise made beforehand, {THREADS} threads, medians of {ROUNDS} rounds in turn; other "
        "processes were running, so CPU time decides.\n\n"
    )
    header = ["network", "pass", "CPU ms a sample", "CPU / plain", "wall / plain", "at most", "met"]
    text += table(header, times)
    text += f"\nPeak memory in MB, all estimators; at most {MAX_MEGABYTES} above inference.\n\n"
    return text + table(["network", "samples", "inference", "above", "met"], memory)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--peak", choices=["plain", "all"])
    parser.add_argument("--many", type=int, default=10_000, help="samples of the memory's 2nd row")
    methods = ["MinMax", "Percentile", "Entropy"]
    parser.add_argument("--theirs", nargs="*", choices=methods, default=methods)
    parser.add_argument("--one", choices=methods, help="measure it alone, and print the result")
    parser.add_argument("--fresh", action="store_true", help="measure saved rows again")
    arguments = parser.parse_args()
    if arguments.peak:
        network = Pass(arguments.networks[0], arguments.samples)
        if arguments.peak == "plain":
            network.plain()
        else:
            network.calibrate(estimators(), True)
        print(own_peak_megabytes())
        return
    if arguments.one:
        print(json.dumps(measure_theirs(arguments.networks[0], arguments.one)))
        return
    store: Path = results_folder() / "calibration_pass.json"
    for name in arguments.networks or MODELS:
        key = f"{name}, {arguments.samples} samples"
        if key in load_rows(store) and not arguments.fresh:
            continue
        save_row(store, key, measure(name, arguments.samples))
        store.with_suffix(".md").write_text(page(load_rows(store)))
    for name in arguments.networks or MODELS:
        key = f"{name} memory"
        if key in load_rows(store) and not arguments.fresh:
            continue
        peaks = {}
        for samples in (64, arguments.many):
            plain = peak_megabytes(name, 64, "plain")
            above = peak_megabytes(name, samples, "all")
            peaks[str(samples)] = {"plain": plain, "megabytes": above}
        save_row(store, key, peaks)
        store.with_suffix(".md").write_text(page(load_rows(store)))
    for name in arguments.networks or MODELS:
        for method in arguments.theirs:
            key = f"{name}, {THEIRS} samples, onnxruntime {method}"
            if key not in load_rows(store) or arguments.fresh:
                row = {method: limited(name, method)}
                save_row(store, key, row)
                store.with_suffix(".md").write_text(page(load_rows(store)))


if __name__ == "__main__":
    main()
