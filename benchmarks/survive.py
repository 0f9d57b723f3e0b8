"""Real networks with the default recipe: metric, agreement, kernels and speed of the file.

    QTOOL_DATA=... python -m benchmarks.survive [ROW ...] [--work DIR] [--samples N] [--fresh]

Every row is a `qtool ptq` run in its own folder below --work; finished rows are saved in
benchmarks/results/survive.json. Writes benchmarks/results/survive.md.
"""

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.networks import absolute, data_folder, write_recipe
from benchmarks.timing import inputs_of, session
from qtool.data import DataSection, open_dataset
from qtool.recipe.loader import load_recipe

BATCH = 8
# Rounds of the two files in turn, and runs of each in a round.
ROUNDS, RUNS = 12, 3
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
        min_speed: over the float file.
    """

    model: str
    calibrate: Mapping[str, Any] | None
    evaluate: Mapping[str, Any] | None
    max_drop: float
    min_speed: float | None = None


def _images(model: str, preprocess: Any, max_drop: float) -> Row:
    halves = [{"images": "imagenet_sample/val", "take": {"every": 2, "offset": k}} for k in (0, 1)]
    return Row(model, {**halves[0], "preprocess": preprocess}, halves[1], max_drop)


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


def quantize(content: dict[str, Any], out: Path) -> tuple[Any, float]:
    """Run `qtool ptq`; return its report and seconds, or exit where it fails."""
    path = write_recipe(content, out.with_suffix(".yaml"))
    command = [sys.executable, "-m", "qtool", "ptq", "--recipe", str(path), "--out", str(out)]
    start = time.perf_counter()
    with out.with_suffix(".log").open("w") as log:
        done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=log)
    if done.returncode not in (0, 1):
        text = out.with_suffix(".log").read_text()
        sys.exit(f"{out}: qtool failed with {done.returncode}:\n{text}")
    return json.loads(done.stdout), time.perf_counter() - start


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


def cpu_milliseconds(paths: Sequence[Path], section: DataSection) -> list[float]:
    """Return the least CPU time of one run of each file, in ms: one sample, one thread.

    CPU time leaves out the waiting for a core that other processes cause; it still contains what
    they take from caches and memory.
    """
    runs = [session(path, 1) for path in paths]
    specs = inputs_of(runs[0])
    first = next(iter(open_dataset(section, specs).batches(1)))
    feeds = {name: first[name] for name in specs}
    best = [float("inf")] * len(runs)
    for _ in range(ROUNDS):
        for k, run in enumerate(runs):
            start = time.process_time()
            for _ in range(RUNS):
                run.run(None, feeds)
            best[k] = min(best[k], 1e3 * (time.process_time() - start) / RUNS)
    return best


def measure(name: str, work: Path, samples: int | None) -> dict[str, Any]:
    """Quantize and evaluate one network; return its row."""
    content, decode = recipe_of(name, work)
    report, seconds = quantize(content, work / name)
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
    speed = cpu_milliseconds(list(files.values()), section)
    right = {
        key: 100 * float(np.mean([p == y for p, y in zip(values, labels, strict=True)]))
        for key, values in found.items()
    }
    return {
        "metric": right,
        "agreement": 100 * float(np.mean(same)),
        "samples": len(same),
        "kernels": report["kernels"],
        "cpu_ms": dict(zip(files, speed, strict=True)),
        "seconds": seconds,
        "date": str(datetime.date.today()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-survive"))
    parser.add_argument("--samples", type=int, help="evaluate this many samples, evenly spaced")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / "survive.json"
    for name in arguments.rows or ROWS:
        if name in load_rows(store) and not arguments.fresh:
            continue
        row = measure(name, work, arguments.samples)
        # Read again: another process may have added rows meanwhile.
        save_rows(store, {**load_rows(store), name: row})
        print(f"{name}: {row['metric']}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    header = ["network", "samples", "float %", "int8 %", "drop", "at most", "agreement %"]
    header += ["kernels: integer, float", "speed over float", "at least", "met", "measured"]
    rows = [_line(name, row, results[name]) for name, row in ROWS.items() if name in results]
    text = heading("Real networks with the default recipe", "python -m benchmarks.survive")
    text += (
        "\nNo recipe names more than the model and its data. MobileNetV2 and EfficientNet-Lite0: "
        "top-1 on the odd half of the ImageNet sample, calibrated on the even half; MiniLM: SST-2; "
        "PP-OCRv4: whole words of 400, calibrated on 200 others. Speed is CPU time of one thread "
        "at batch 1, the least of several runs next to other work: read differences below 10 % as "
        "noise.\n\n"
    )
    return text + table(header, rows)


def _line(name: str, row: Row, result: Mapping[str, Any]) -> list[object]:
    metric, kernels, cpu = result["metric"], result["kernels"], result["cpu_ms"]
    drop, speed = metric["float"] - metric["int8"], cpu["float"] / cpu["int8"]
    met = drop <= row.max_drop and (row.min_speed is None or speed >= row.min_speed)
    counts = [sum(kernels[kind].values()) for kind in ("integer", "float")]
    return [
        name,
        result["samples"],
        f"{metric['float']:.2f}",
        f"{metric['int8']:.2f}",
        f"{drop:+.2f}",
        row.max_drop,
        f"{result['agreement']:.1f}",
        f"{counts[0]}, {counts[1]}",
        f"{speed:.2f}",
        row.min_speed or "-",
        "yes" if met else "NO",
        result["date"],
    ]


if __name__ == "__main__":
    main()
