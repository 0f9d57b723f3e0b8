"""Range estimators without any repair: all layers at W8A8, W4A4 and W3A3, residual networks.

    QTOOL_DATA=... python -m benchmarks.estimators [ROW ...] [--every N] [--only NAME ...] [--fresh]

A row is a network and a width, such as `resnet20 W4A4`. One pass over the calibration images
serves all estimators; the files are evaluated in ONNX Runtime. Rows are saved estimator by
estimator, so a stopped run continues. Writes benchmarks/results/estimators.md.
"""

import argparse
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import qtool
from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.networks import NETWORKS, recipe
from qtool.annotation.annotator import annotate
from qtool.calibration import (
    ACIQ,
    MSE,
    Auto,
    Entropy,
    Histogram,
    KthValue,
    MeanMinMax,
    MinMax,
    MovingAverage,
    Percentile,
)
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.calibration.statistics import Calibrator, Stats
from qtool.data import Dataset, open_dataset
from qtool.emitters import emit_qdq
from qtool.loading import bind_shapes, infer_shapes
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.recipe.loader import recipe_from_keywords
from qtool.rewrites import REWRITES
from qtool.runtime.ort_session import OrtSession
from qtool.targets.loader import load_target
from qtool.weights.grids import weight_grids

ESTIMATORS: dict[str, Calibrator] = {
    "minmax": MinMax(),
    "moving_average": MovingAverage(),
    "mean_minmax": MeanMinMax(),
    "percentile 99": Percentile(q=0.99),
    "percentile 99.9": Percentile(q=0.999),
    "percentile 99.99": Percentile(),
    "kth_value": KthValue(),
    "histogram": Histogram(),
    "entropy": Entropy(),
    "entropy n2d2": Entropy(form="n2d2"),
    "mse": MSE(),
    "mse p=2.4": MSE(p=2.4),
    "aciq": ACIQ(),
    "aciq gaussian": ACIQ(distribution="gaussian"),
    "aciq laplace": ACIQ(distribution="laplace"),
    "auto": Auto(),
}
WIDTHS = {f"W{n}A{n}": Bits(weights=n, activations=n) for n in (8, 4, 3)}
ROWS = [f"{network} {width}" for network in ("resnet20", "resnet56") for width in WIDTHS]
# Drops in points that the best estimator shall not exceed, on all test images.
LARGEST = {"resnet20 W4A4": 6.0, "resnet20 W3A3": 42.0, "resnet56 W4A4": 5.0, "resnet56 W3A3": 30.0}
# Source: Quantization of ResNet-50 on CIFAR-10 after training, all layers.
PUBLISHED = (
    "Published for ResNet-50 on CIFAR-10, float 93.62: 8 bits 93.52 (histogram), 4 bits 64.62 "
    "(histogram) and 88.55 (percentile), 3 bits 50.76 (percentile).\n"
)


class Network:
    """A network with its calibration statistics, collected once."""

    def __init__(self, name: str, every: int) -> None:
        loaded = recipe_from_keywords(recipe(NETWORKS[name], 0), "here", Path("/"), files=True)
        if loaded.evaluate is None:
            raise AssertionError(f"{name} has no labels")
        model = qtool.load(str(loaded.model))
        same = {"preprocess": loaded.evaluate.preprocess or loaded.calibrate.preprocess}
        data = open_dataset(loaded.evaluate.model_copy(update=same), model.inputs)
        self.inputs = list(model.inputs)
        self.data = data.take(list(range(0, data.count, every)))
        self.calibration: Dataset = open_dataset(loaded.calibrate, model.inputs)
        self.target, self.graph = load_target("onnxruntime-cpu"), model._graph.clone()
        self.float = self.accuracy(model._graph)
        first = next(iter(self.calibration.batches(1)))
        bind_shapes(self.graph, {name: first[name].shape for name in self.inputs})
        for rewrite in self.target.rewrites:
            REWRITES[rewrite](self.graph, lambda node: True)
            infer_shapes(self.graph)
        self.stats: dict[str, Stats] = {}

    def accuracy(self, file: ir.Model) -> float:
        """Return the accuracy of a file, in percent."""
        out = file.graph.outputs[0].name or ""
        hits: list[np.ndarray] = []
        labels = np.asarray(self.data.labels)
        with OrtSession(file, [out]) as session:
            for batch in self.data.batches(64):
                scores = session.stream({name: batch[name] for name in self.inputs})[out]
                hits.append(scores.reshape(len(scores), -1).argmax(1))
        return float(100 * np.mean(np.concatenate(hits) == labels))

    def quantized(self, bits: Bits, calibrator: Calibrator) -> tuple[float, list[str]]:
        """Return the accuracy with one estimator, and the notes of its choice."""
        plan = weight_grids(self.graph, annotate(self.graph, self.target, bits))
        names = observed_values(self.graph, plan)
        if not set(names) <= set(self.stats):
            batches = ({n: batch[n] for n in self.inputs} for batch in self.calibration.batches(16))
            self.stats = collect(self.graph, names, batches, histograms=True)
        plan = choose_grids(plan, {n: self.stats[n] for n in names}, calibrator)
        return self.accuracy(emit_qdq(self.graph, freeze(self.graph, plan), self.target)), [
            *plan.log
        ]


def measure(row: str, every: int, store: Path, fresh: bool, only: list[str]) -> None:
    """Measure the estimators of a row that are not saved yet."""
    name, width = row.split()
    network: Network | None = None
    for label, calibrator in ESTIMATORS.items():
        key = f"{row}, {label}, every {every}"
        if (key in load_rows(store) and not fresh) or (only and label not in only):
            continue
        network = network or Network(name, every)
        accuracy, notes = network.quantized(WIDTHS[width], calibrator)
        result = {
            "float": network.float,
            "quantized": accuracy,
            "images": network.data.count,
            "calibration": network.calibration.count,
            "notes": notes,
            "date": str(datetime.date.today()),
        }
        # Read again: another process may have added rows meanwhile.
        save_rows(store, {**load_rows(store), key: result})
        print(f"{key}: {network.float:.2f} -> {accuracy:.2f}", flush=True)


def _lines(results: Mapping[str, Any], row: str, every: int) -> list[list[object]]:
    """Return the lines of a row on one share of the test images, the smallest drop first."""
    measured = {n: results.get(f"{row}, {n}, every {every}") for n in ESTIMATORS}
    drops = {n: r["float"] - r["quantized"] for n, r in measured.items() if r is not None}
    lines: list[list[object]] = []
    for label, drop in sorted(drops.items(), key=lambda item: item[1]):
        least = None if lines else LARGEST.get(row)
        limit = ["", ""] if least is None else [f"{least:.1f}", "yes" if drop <= least else "NO"]
        result = measured[label] or {}
        accuracy = f"{result['quantized']:.2f}"
        lines.append([row, result["images"], label, accuracy, f"{drop:.2f}", *limit])
    return lines


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    shares = sorted({int(key.rpartition(" ")[2]) for key in results})
    rows = [line for row in ROWS for every in shares for line in _lines(results, row, every)]
    text = heading("Range estimators", "python -m benchmarks.estimators")
    text += (
        "\nAll layers at the same width, weights per channel (8 bits: full range; below: least "
        "squared error), activations by each estimator from one pass over 512 training images, no "
        "step after calibration; `auto` value by value, without its comparison on held-out "
        "samples. Ordered by drop in points; one standard error of an accuracy is "
        "0.3 points on 10,000 images, 0.6 on 2,000.\n\n"
    )
    header = ["row", "images", "estimator", "quantized %", "drop", "at most", "met"]
    return text + table(header, rows) + "\n" + PUBLISHED


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--every", type=int, default=1, help="of the test images")
    parser.add_argument("--only", nargs="*", default=[], help="names of estimators")
    parser.add_argument("--fresh", action="store_true", help="measure saved rows again")
    arguments = parser.parse_args()
    store = results_folder() / "estimators.json"
    for row in arguments.rows or ROWS:
        measure(row, arguments.every, store, arguments.fresh, arguments.only)
    store.with_suffix(".md").write_text(page(load_rows(store)))


if __name__ == "__main__":
    main()
