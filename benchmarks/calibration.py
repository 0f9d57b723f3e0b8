"""Time and memory of a run: against quantize_static, by number of samples, and of `--help`.

    QTOOL_DATA=... python -m benchmarks.calibration

Writes benchmarks/results/calibration.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import heading, results_folder, table
from benchmarks.networks import NETWORKS, data_folder, recipe, write_recipe

ROUNDS = 5


def run(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float, str]:
    """Run a command; return wall seconds, peak MB of all its processes together, and stdout."""
    start = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            total = 0
            try:
                root = psutil.Process(child.pid)
                for process in (root, *root.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.Error:
                continue
            peak = max(peak, total)

    thread = threading.Thread(target=watch)
    thread.start()
    out, _ = child.communicate()
    seconds = time.perf_counter() - start
    ended.set()
    thread.join()
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed with {child.returncode}")
    return seconds, peak / 2**20, out


def ptq(path: Path, out: Path) -> list[str]:
    command = [sys.executable, "-m", "qtool", "ptq", "--recipe", str(path), "--out", str(out)]
    return [*command, "--fresh", "--quiet", "--json"]


def run_static(path: Path, folder: Path) -> None:
    """Run quantize_static, in a process of its own (`--static`)."""
    from benchmarks.baseline import quantize
    from qtool.data import DataSection, InputSpec, open_dataset

    arguments = json.loads(path.read_text())
    spec = {"input": InputSpec("input", ("N", 3, 224, 224), "float32")}
    data = open_dataset(DataSection.model_validate(arguments["section"]), spec)
    feeds = ({"input": batch["input"]} for batch in data.batches(1))
    quantize(Path(arguments["model"]), feeds, folder / "static.onnx")


def compare_commands(folder: Path, method: str) -> list[list[object]]:
    """Time whole commands in turn, with 64 images and without evaluation."""
    plain: dict[str, Any] = recipe(NETWORKS["mobilenet_v2"], 0)
    del plain["evaluate"]
    plain["calibrate"] |= {"count": 64}
    job = folder / "static.json"
    job.write_text(json.dumps({"model": plain["model"], "section": plain["calibrate"]}))
    plain["calibrate"]["method"] = method
    path = write_recipe(plain, folder / f"{method}.yaml")
    sides = {
        f"qtool ptq, {method}": ptq(path, folder / method),
        "quantize_static, MinMax": [
            sys.executable,
            "-m",
            "benchmarks.calibration",
            "--static",
            str(job),
        ],
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    stages: list[float] = []
    for _ in range(ROUNDS):
        for name, command in sides.items():
            seconds, peak, out = run(command)
            results[name].append((seconds, peak))
            if name.startswith("qtool"):
                report = json.loads(out)
                names = ("load", "rewrite", "annotate", "calibrate", "freeze", "emit")
                stages.append(sum(s["seconds"] for s in report["stages"] if s["name"] in names))
    qtool, static = results.values()
    ratio = statistics.median(a[0] / b[0] for a, b in zip(qtool, static, strict=True))
    rows: list[list[object]] = []
    for name, values in results.items():
        seconds = statistics.median(v[0] for v in values)
        rows.append([name, f"{seconds:.2f}", f"{max(v[1] for v in values):.0f}", ""])
    rows[0][3] = (
        f"{ratio:.2f} x quantize_static; to the written file {statistics.median(stages):.2f} s"
    )
    return rows


def memory(folder: Path) -> list[list[object]]:
    """Measure the peak memory of the calibration for two numbers of images."""
    rows: list[list[object]] = []
    for count in (50, 500):
        plain: dict[str, Any] = recipe(NETWORKS["mobilenet_v2"], 0)
        del plain["evaluate"]
        plain["calibrate"] = {
            "images": plain["calibrate"]["images"],
            "preprocess": "tf",
            "count": count,
            "method": "mse",
        }
        path = write_recipe(plain, folder / f"memory{count}.yaml")
        peaks, seconds = [], []
        for _ in range(3):
            report = json.loads(run(ptq(path, folder / f"memory{count}"))[2])
            stage = next(s for s in report["stages"] if s["name"] == "calibrate")
            peaks.append(stage["peak_rss_mb"])
            seconds.append(stage["seconds"])
        rows.append([count, statistics.median(peaks), f"{statistics.median(seconds):.2f}"])
    rows.append(["ratio", f"{rows[1][1] / rows[0][1]:.3f}", ""])  # type: ignore[operator]
    return rows


def help_seconds() -> float:
    """Return the median wall seconds of `qtool --help`."""
    command = [str(Path(sys.executable).parent / "qtool"), "--help"]
    return statistics.median(run(command)[0] for _ in range(2 * ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--static", type=Path)
    arguments = parser.parse_args()
    if arguments.static is not None:
        run_static(arguments.static, arguments.static.parent)
        return
    data_folder()
    os.chdir(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = heading("Time and memory of a run", "python -m benchmarks.calibration")
        text += (
            "\n## MobileNetV2, 64 calibration images, no evaluation\n\nWhole commands, "
            f"medians of {ROUNDS} runs in turn; memory is the sum over all processes of a command. "
            "quantize_static stops when the file is written; qtool goes on to load it, time it, "
            "check parity and measure every layer.\n\n"
        )
        header = ["command", "seconds", "peak MB", ""]
        text += table(
            header, [*compare_commands(folder, "minmax"), *compare_commands(folder, "mse")]
        )
        text += "\n## Memory against the number of images (calibrate, mse)\n\n"
        text += table(["images", "peak MB", "seconds"], memory(folder))
    text += f"\n## Start\n\n`qtool --help`: {help_seconds():.2f} s (median of {2 * ROUNDS}).\n"
    (results_folder() / "calibration.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
