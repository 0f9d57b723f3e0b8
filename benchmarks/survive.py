"""Real networks with the default recipe: metric, agreement, kernels and speed of the file.

    QTOOL_DATA=... python -m benchmarks.survive [ROW ...] [--work DIR] [--fresh]
    QTOOL_DATA=... python -m benchmarks.survive --times [ROW ...] [--work DIR] [--fresh]

Every row is a `qtool ptq` run in its own folder below --work. --times wants a machine without other
work: it times the float file, that of qtool and that of onnxruntime's quantize_static in turn.
Finished rows and times are saved in benchmarks/results/survive.json, so a stopped run continues.
Writes benchmarks/results/survive.md.
"""

import argparse
import contextlib
import datetime
import io
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.baseline import quantize as quantize_static
from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_row, table
from benchmarks.networks import Network, data_folder, recipe
from benchmarks.ocr import WORDS
from benchmarks.timing import in_turn, inputs_of, session
from qtool.data import DataSection, open_dataset
from qtool.recipe.loader import load_recipe

# Rounds of the files in turn, seconds of each file in a round, and its fewest runs.
ROUNDS, SECONDS, LEAST = 15, 0.5, 5
# Samples that quantize_static calibrates with: its file is only timed.
STATIC_SAMPLES = 64
# What is kept of a report's accuracy.
ACCURACY = ("metric", "samples", "float", "simulated", "quantized", "drop", "agreement")
# Processes that run, on average, from which on times are called doubtful.
BUSY = 0.5


@dataclass(frozen=True)
class Row:
    """One network of the table.

    Attributes:
        network: with its data.
        max_drop: points.
        min_speed: over the float file; None: no limit.
        min_static: over the file of quantize_static; None: no limit, or its file does not load.
    """

    network: Network
    max_drop: float
    min_speed: float | None = None
    min_static: float | None = None


def _images(model: str, preprocess: Any, max_drop: float) -> Row:
    halves = [{"images": "imagenet_sample/val", "take": {"every": 2, "offset": k}} for k in (0, 1)]
    fold = ({**halves[0], "preprocess": preprocess}, halves[1])
    return Row(Network(model, (fold,)), max_drop, min_static=1.05)


EFFICIENTNET = {
    "resize": 256,
    "resize_mode": "bicubic",
    "crop": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# What EfficientNet-Lite was trained with, by its accuracy: 10 points above the row before.
MINUS_ONE_TO_ONE = {**EFFICIENTNET, "scale": 1 / 127.5, "mean": 1.0, "std": 1.0}
MINILM = (
    {"arrays": {"path": "sst2/minilm_train.npz"}, "count": 512},
    {"arrays": {"path": "sst2/minilm_test.npz"}},
)

ROWS: dict[str, Row] = {
    "mobilenet_v2_float": _images("models/mobilenet_v2_float.onnx", "imagenet", 0.4),
    "efficientnet_lite0": _images("models/efficientnet_lite0.onnx", EFFICIENTNET, 0.6),
    "efficientnet_lite0_tf": _images("models/efficientnet_lite0.onnx", MINUS_ONE_TO_ONE, 0.6),
    "minilm_l6_sst2": Row(Network("built/minilm_l6_sst2.onnx", (MINILM,)), 0.3, 2.3, 1.3),
    "ppocr_v4_rec": Row(WORDS, 0.5, 1.8),
}


def calibration_section(out: Path) -> DataSection:
    """Return the calibration samples of a run, as many as quantize_static gets."""
    recipe = load_recipe(out / "recipe.yaml")
    section = recipe.calibrate.model_dump(include=set(DataSection.model_fields))
    return DataSection.model_validate({**section, "count": STATIC_SAMPLES})


def static_file(model: Path, out: Path, section: DataSection) -> str:
    """Write the file of quantize_static next to a run; return why it does not load, or ""."""
    path = static_path(out)
    try:
        if not path.is_file():
            specs = inputs_of(session(model))
            batches = open_dataset(section, specs).batches(1)
            feeds = ({name: batch[name] for name in specs} for batch in batches)
            with contextlib.redirect_stdout(io.StringIO()):
                quantize_static(model, feeds, path)
        session(path)
    except Exception as error:  # any failure of the other tool is a result
        text = str(error).splitlines()[0].replace(str(path), path.name)
        return f"{type(error).__name__}: {text[:120]}"
    return ""


def static_path(out: Path) -> Path:
    """Return the path of the file of quantize_static."""
    return out.with_name(f"{out.name}-static.onnx")


def measure_times(name: str, work: Path) -> dict[str, Any]:
    """Time the files of a finished row in turn: one sample, one thread.

    Returns:
        Median milliseconds of each file, the medians over rounds of their ratios to qtool's file,
        why that of quantize_static does not load, and the load of the machine before.
    """
    load = os.getloadavg()[0]
    model, out = data_folder() / ROWS[name].network.model, work / name
    if not (out / "model.onnx").is_file():
        quantize(name, work)
    section = calibration_section(out)
    failure = static_file(model, out, section)
    files = {"float": model, "int8": out / "model.onnx"}
    files |= {} if failure else {"static": static_path(out)}
    runs = [session(path) for path in files.values()]
    specs = inputs_of(runs[0])
    first = next(iter(open_dataset(section, specs).batches(1)))
    feeds = {key: first[key] for key in specs}
    times = in_turn(runs, feeds, ROUNDS, SECONDS, LEAST, statistics.median)
    of = dict(zip(files, times, strict=True))
    ratios = {
        key: statistics.median(a / b for a, b in zip(blocks, of["int8"], strict=True))
        for key, blocks in of.items()
        if key != "int8"
    }
    return {
        "ms": {key: statistics.median(blocks) for key, blocks in of.items()},
        "over": ratios,
        "failure": failure,
        "load": load,
    }


def measure(name: str, work: Path) -> dict[str, Any]:
    """Quantize and evaluate one network; return its row."""
    report, seconds = quantize(name, work)
    return {
        "accuracy": {k: v for k, v in report["accuracy"].items() if k in ACCURACY},
        "sqnr_db": [output["sqnr_db"] for output in report["outputs"]],
        "kernels": report["kernels"],
        "seconds": seconds,
        "date": str(datetime.date.today()),
    }


def quantize(name: str, work: Path) -> tuple[Any, float]:
    """Run `qtool ptq` on a network; return its report and the seconds."""
    content = recipe(ROWS[name].network, 0)
    return run_qtool("ptq", content, work / name, "--trust-code", "--fresh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-survive"))
    parser.add_argument("--times", action="store_true", help="time the files of finished rows")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / "survive.json"
    for name in arguments.rows or ROWS:
        before = load_rows(store).get(name, {})
        part = "times" if arguments.times else "accuracy"
        if part in before and not arguments.fresh:
            continue
        if arguments.times:
            row = {**before, "times": measure_times(name, work)}
        else:
            row = {**before, **measure(name, work)}
        save_row(store, name, row)
        print(f"{name}: {row[part]}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    header = ["network", "samples", "float %", "int8 %", "drop", "at most", "agreement %"]
    header += ["SQNR dB, by output", "kernels: integer, float", "speed over float", "at least"]
    header += ["speed over quantize_static", "at least", "met", "measured"]
    rows = [
        _line(name, row, results[name])
        for name, row in ROWS.items()
        if "accuracy" in results.get(name, {})
    ]
    text = heading("Real networks with the default recipe", "python -m benchmarks.survive")
    text += (
        "\nNo recipe names more than the model and its data. MobileNetV2 and EfficientNet-Lite0: "
        "top-1 on the odd half of the ImageNet sample, calibrated on the even half; MiniLM: SST-2; "
        "PP-OCRv4: whole words of 400, calibrated on 200 others. Speed (`--times`): one sample, "
        f"one thread, the three files in turn in one process, {ROUNDS} rounds; the median of a "
        "round's ratios of medians. quantize_static: QDQ, uint8 by int8 per channel, MinMax on "
        f"{STATIC_SAMPLES} of the samples.\n\n"
    )
    text += table(header, rows)
    busy = [
        f"{name} (load {results[name]['times']['load']:.1f})"
        for name in ROWS
        if results.get(name, {}).get("times", {}).get("load", 0) > BUSY
    ]
    if busy:
        text += f"\nOther work ran on the machine while these were timed: {', '.join(busy)}.\n"
    return text


def _line(name: str, row: Row, result: Mapping[str, Any]) -> list[object]:
    accuracy, kernels, times = result["accuracy"], result["kernels"], result.get("times", {})
    drop = accuracy["drop"]
    over = times.get("over", {})
    counts = [sum(kernels[kind].values()) for kind in ("integer", "float")]
    failed = times.get("failure")
    limits = [(row.min_speed, over.get("float"))]
    limits += [] if failed else [(row.min_static, over.get("static"))]
    slow = [limit for limit, ratio in limits if limit and ratio is not None and ratio < limit]
    missing = [limit for limit, ratio in limits if limit and ratio is None]
    met = "NO" if drop > row.max_drop or slow else "not timed" if missing else "yes"
    speeds = [f"{over[key]:.2f}" if key in over else "-" for key in ("float", "static")]
    if failed:
        speeds[1] = f"does not load ({failed.split(':')[0]})"
    return [
        name,
        accuracy["samples"],
        f"{accuracy['float']:.2f}",
        f"{accuracy['quantized']:.2f}",
        f"{drop:+.2f}",
        row.max_drop,
        f"{accuracy['agreement']:.1f}" if "agreement" in accuracy else "-",
        ", ".join(f"{value:.1f}" for value in result["sqnr_db"]),
        f"{counts[0]}, {counts[1]}",
        speeds[0],
        row.min_speed or "-",
        speeds[1],
        row.min_static or "-",
        met,
        result["date"],
    ]


if __name__ == "__main__":
    main()
