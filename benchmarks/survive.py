"""Real networks with the default recipe: metric, agreement, kernels and speed of the file.

    QTOOL_DATA=... python -m benchmarks.survive [ROW ...] [--work DIR] [--samples N] [--fresh]
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.baseline import quantize as quantize_static
from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_row, table
from benchmarks.networks import absolute, data_folder
from benchmarks.timing import in_turn, inputs_of, session
from qtool.data import DataSection, open_dataset
from qtool.recipe.loader import load_recipe

BATCH = 8
# Rounds of the files in turn, seconds of each file in a round, and its fewest runs.
ROUNDS, SECONDS, LEAST = 15, 0.5, 5
# Samples that quantize_static calibrates with: its file is only timed.
STATIC_SAMPLES = 64
# Processes that run, on average, from which on times are called doubtful.
BUSY = 0.5
OCR_CALIBRATION = 200

Predictions = Sequence[str] | np.ndarray
Decode = Callable[[np.ndarray], Predictions]


@dataclass(frozen=True)
class Row:
    """One network of the table.

    Attributes:
        model: path below QTOOL_DATA.
        calibrate, evaluate: sections of the recipe; None: :func:`words` prepares the arrays.
        max_drop: points.
        min_speed: over the float file; None: no limit.
        min_static: over the file of quantize_static; None: no limit, or its file does not load.
    """

    model: str
    calibrate: Mapping[str, Any] | None
    evaluate: Mapping[str, Any] | None
    max_drop: float
    min_speed: float | None = None
    min_static: float | None = None


def _images(model: str, preprocess: Any, max_drop: float) -> Row:
    halves = [{"images": "imagenet_sample/val", "take": {"every": 2, "offset": k}} for k in (0, 1)]
    sections = {**halves[0], "preprocess": preprocess}, halves[1]
    return Row(model, *sections, max_drop, min_static=1.05)


EFFICIENTNET = {
    "resize": 256,
    "resize_mode": "bicubic",
    "crop": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# What EfficientNet-Lite was trained with, by its accuracy: 10 points above the row before.
MINUS_ONE_TO_ONE = {**EFFICIENTNET, "scale": 1 / 127.5, "mean": 1.0, "std": 1.0}

ROWS: dict[str, Row] = {
    "mobilenet_v2_float": _images("models/mobilenet_v2_float.onnx", "imagenet", 0.4),
    "efficientnet_lite0": _images("models/efficientnet_lite0.onnx", EFFICIENTNET, 0.6),
    "efficientnet_lite0_tf": _images("models/efficientnet_lite0.onnx", MINUS_ONE_TO_ONE, 0.6),
    "minilm_l6_sst2": Row(
        "built/minilm_l6_sst2.onnx",
        {"arrays": {"path": "sst2/minilm_train.npz"}, "count": 512},
        {"arrays": {"path": "sst2/minilm_test.npz"}},
        0.3,
        2.3,
        1.3,
    ),
    "ppocr_v4_rec": Row("models/ppocr_v4_rec.onnx", None, None, 0.5, 1.8),
}


def words(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the words as the recognizer reads them: BGR, [-1, 1], NCHW; return both sections."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(data_folder() / "ocr" / "ocr_words.npz") as archive:
        x, y = archive["x"], archive["y"]
    x = x[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    parts = {"calibrate": slice(0, OCR_CALIBRATION), "evaluate": slice(OCR_CALIBRATION, None)}
    sections = []
    for name, part in parts.items():
        np.savez(folder / f"{name}.npz", x=x[part])
        np.save(folder / f"{name}_words.npy", y[part])
        sections.append({"arrays": {"path": str(folder / f"{name}.npz")}})
    return sections[0], sections[1]


def greedy_ctc(model: Path) -> Decode:
    """Return the decoder of the recognizer: best class a step, no repeats, no blank (0)."""
    properties = {p.key: p.value for p in onnx.load(model).metadata_props}
    characters = ["", *properties["character"].split("\n"), " "]

    def decode(outputs: np.ndarray) -> Predictions:
        best = outputs.argmax(-1)
        changed = np.diff(best, axis=1, prepend=0) != 0
        return [
            "".join(characters[k] for k in row[new & (row != 0)]).strip()
            for row, new in zip(best, changed, strict=True)
        ]

    return decode


def best_class(outputs: np.ndarray) -> Predictions:
    """Return the class with the largest output."""
    return np.asarray(outputs.argmax(-1))


def recipe_of(name: str, work: Path) -> tuple[dict[str, Any], Decode]:
    """Return the recipe of a row, with absolute paths, and its decoder."""
    row = ROWS[name]
    model = data_folder() / row.model
    if row.calibrate is None or row.evaluate is None:
        calibrate, evaluate = words(work / "words")
        return {"model": str(model), "calibrate": calibrate}, greedy_ctc(model)
    calibrate, evaluate = absolute(dict(row.calibrate)), absolute(dict(row.evaluate))
    content = {"model": str(model), "calibrate": calibrate, "evaluate": evaluate}
    return content, best_class


def eval_section(name: str, out: Path, work: Path, samples: int | None) -> tuple[Any, Any]:
    """Return the evaluation section as the run resolved it, and labels that are not in it."""
    recipe = load_recipe(out / "recipe.yaml")
    if recipe.evaluate is None:
        evaluate = {"arrays": {"path": str(work / "words" / "evaluate.npz")}}
        labels = np.load(work / "words" / "evaluate_words.npy")
        return DataSection.model_validate({**evaluate, "count": samples}), labels
    section = recipe.evaluate.model_dump(include=set(DataSection.model_fields))
    section |= {"preprocess": recipe.calibrate.preprocess}
    return DataSection.model_validate({**section, "count": samples or section["count"]}), None


def predictions(path: Path, section: DataSection, decode: Decode) -> tuple[list[Any], Any]:
    """Return a file's prediction of every sample, and the labels of the section."""
    run = session(path, 2)
    specs = inputs_of(run)
    data = open_dataset(section, specs)
    found: list[Any] = []
    for batch in data.batches(BATCH):
        found += list(decode(run.run(None, {n: batch[n] for n in specs})[0]))
    return found, data.labels


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
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
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
    content, _ = recipe_of(name, work)
    model, out = Path(content["model"]), work / name
    if not (out / "model.onnx").is_file():
        run_qtool("ptq", content, out)
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


def measure(name: str, work: Path, samples: int | None) -> dict[str, Any]:
    """Quantize and evaluate one network; return its row."""
    content, decode = recipe_of(name, work)
    report, seconds = run_qtool("ptq", content, work / name)
    section, labels = eval_section(name, work / name, work, samples)
    files = {"float": Path(content["model"]), "int8": work / name / "model.onnx"}
    found: dict[str, list[Any]] = {}
    for key, path in files.items():
        found[key], own = predictions(path, section, decode)
        labels = own if labels is None else labels
    if labels is not None and len(labels) != len(found["float"]):  # `count` spaces them evenly
        index = [round(k) for k in np.linspace(0, len(labels) - 1, len(found["float"]))]
        labels = np.asarray(labels)[index]
    same = [a == b for a, b in zip(found["float"], found["int8"], strict=True)]
    right = {
        key: 100 * float(np.mean([p == y for p, y in zip(values, labels, strict=True)]))
        for key, values in found.items()
    }
    return {
        "metric": right,
        "agreement": 100 * float(np.mean(same)),
        "samples": len(same),
        "kernels": report["kernels"],
        "seconds": seconds,
        "date": str(datetime.date.today()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-survive"))
    parser.add_argument("--samples", type=int, help="evaluate this many samples, evenly spaced")
    parser.add_argument("--times", action="store_true", help="time the files of finished rows")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / "survive.json"
    for name in arguments.rows or ROWS:
        before = load_rows(store).get(name, {})
        part = "times" if arguments.times else "metric"
        if part in before and not arguments.fresh:
            continue
        if arguments.times:
            row = {**before, "times": measure_times(name, work)}
        else:
            row = {**before, **measure(name, work, arguments.samples)}
        save_row(store, name, row)
        print(f"{name}: {row[part]}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    header = ["network", "samples", "float %", "int8 %", "drop", "at most", "agreement %"]
    header += ["kernels: integer, float", "speed over float", "at least"]
    header += ["speed over quantize_static", "at least", "met", "measured"]
    rows = [
        _line(name, row, results[name])
        for name, row in ROWS.items()
        if "metric" in results.get(name, {})
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
    metric, kernels, times = result["metric"], result["kernels"], result.get("times", {})
    drop = metric["float"] - metric["int8"]
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
        result["samples"],
        f"{metric['float']:.2f}",
        f"{metric['int8']:.2f}",
        f"{drop:+.2f}",
        row.max_drop,
        f"{result['agreement']:.1f}",
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
