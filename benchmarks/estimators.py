"""Range estimators without any repair: W8A8, W8A6, W8A4 of all networks; W4A4, W3A3 of ResNets.

    QTOOL_DATA=... python -m benchmarks.estimators [ROW ...] [--every N] [--only NAME ...] [--fresh]

A row is a network and a width, such as `resnet20 W4A4`. One pass over the calibration samples
serves all estimators and widths of a network; the files are evaluated in ONNX Runtime. Rows are
saved estimator by estimator, so a stopped run continues. Writes benchmarks/results/estimators.md.
"""

import argparse
import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import qtool
from benchmarks.machine import heading, load_rows, results_folder, save_row, table
from benchmarks.networks import recipe
from benchmarks.paired import evaluation_samples, mcnemar, only_one_right
from benchmarks.repair import NAMES
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
from qtool.calibration.batch_size import batch_size, pass_elements
from qtool.calibration.collect import collect, observed_values
from qtool.calibration.statistics import Calibrator, Stats
from qtool.data import open_dataset
from qtool.emitters import emit_qdq
from qtool.loading import bind_shapes, infer_shapes
from qtool.pipeline.calibration.grids import grids_from_statistics
from qtool.ptq import SeqMSE
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.recipe.loader import recipe_from_keywords
from qtool.rewrites import REWRITES
from qtool.runtime.ort_session import OrtSession
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageCache
from qtool.targets.loader import load_target
from qtool.weights.grids import weight_grids

# Test samples of a batch.
ROWS = 64
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
# Ranges of weights searched by the output of each layer after the activations' estimator.
SEARCHED: dict[str, Calibrator] = {
    "mse, weights seqmse": MSE(),
    "mse p=2.4, weights seqmse": MSE(p=2.4),
    "mean_minmax, weights seqmse": MeanMinMax(),
}
WIDTHS = {f"W{n}A{n}": Bits(weights=n, activations=n) for n in (4, 3)}
WIDTHS |= {f"W8A{n}": Bits(weights=8, activations=n) for n in (8, 6, 4)}
LOW = [f"{network} {width}" for network in ("resnet20", "resnet56") for width in ("W4A4", "W3A3")]
# Every so many test samples of each labelled network; 300 (keywords) to 2,000 samples (CIFAR-10).
EVERY = {
    "resnet20": 5,
    "resnet56": 5,
    "mobilenet_v2_float": 1,
    "efficientnet_lite0": 1,
    "squeezenet1_1": 1,
    "fsdd_dscnn": 1,
    "sst2_transformer2l": 1,
    "minilm_l6_sst2": 1,
}
WIDE = [f"{network} {width}" for network in EVERY for width in ("W8A8", "W8A6", "W8A4")]
# Drops in points that the best estimator shall not exceed, on all test images.
LARGEST = {"resnet20 W4A4": 6.0, "resnet20 W3A3": 42.0, "resnet56 W4A4": 5.0, "resnet56 W3A3": 30.0}
# Source: Quantization of ResNet-50 on CIFAR-10 after training, all layers.
PUBLISHED = (
    "Published for ResNet-50 on CIFAR-10, float 93.62: 8 bits 93.52 (histogram), 4 bits 64.62 "
    "(histogram) and 88.55 (percentile), 3 bits 50.76 (percentile).\n"
)


class Network:
    """A network with its test samples and the statistics of each value, both made once."""

    def __init__(self, name: str, every: int, threads: int | None) -> None:
        loaded = recipe_from_keywords(recipe(NAMES[name], 0), "here", Path("/"), files=True)
        model = qtool.load(str(loaded.model))
        data = evaluation_samples(loaded, model.inputs)
        self.data = data.take(list(range(0, data.count, every)))
        calibration = open_dataset(loaded.calibrate, model.inputs)
        target, graph = load_target("onnxruntime-cpu"), model._graph.clone()
        self.inputs, self.threads = list(model.inputs), threads
        self.batches = [{n: b[n] for n in self.inputs} for b in self.data.batches(ROWS)]
        self.float = self.hits(model._graph)
        first = next(iter(calibration.batches(1)))
        bind_shapes(graph, {name: first[name].shape for name in self.inputs})
        for rewrite in target.rewrites:
            REWRITES[rewrite](graph, lambda node: True)
            infer_shapes(graph)
        self.context = Context(
            model=graph,
            name=name,
            sha256="",
            target=target,
            bits=Bits(),
            inputs=model.inputs,
            calibration=calibration,
            cache=StageCache(Path("unused")),
            threads=threads,
        )
        self.stats: dict[tuple[str, int], Stats] = {}

    def hits(self, file: ir.Model) -> np.ndarray:
        """Return whether a file is right, for each sample."""
        out = file.graph.outputs[0].name or ""
        parts: list[np.ndarray] = []
        with OrtSession(file, [out], self.threads) as session:
            for batch in self.batches:
                scores = session.stream(batch)[out]
                parts.append(scores.reshape(len(scores), -1).argmax(1))
        return np.asarray(np.concatenate(parts) == np.asarray(self.data.labels))

    def quantized(self, bits: Bits, calibrator: Calibrator, search: bool) -> QuantPlan:
        """Return the frozen plan with the grids of an estimator.

        Args:
            bits: of weights and activations.
            calibrator: of the activations.
            search: search the ranges of weights by the layers' outputs afterwards.
        """
        context = replace(self.context, bits=bits)
        graph, target = context.model, context.target
        plan = weight_grids(graph, annotate(graph, target, bits))
        names = observed_values(graph, plan)
        data = context.fit if calibrator.finalists else context.calibration
        if missing := tuple(n for n in names if (n, data.count) not in self.stats):
            rows = batch_size(pass_elements(graph, names), data.count)
            batches = ({n: batch[n] for n in self.inputs} for batch in data.batches(rows))
            stats = collect(graph, missing, batches, histograms=True, threads=self.threads)
            self.stats |= {(n, data.count): part for n, part in stats.items()}
        stats = {n: self.stats[n, data.count] for n in names}
        plan = grids_from_statistics(context, plan, stats, calibrator)
        if search:
            plan = SeqMSE()(plan, context).plan
        return freeze(graph, plan)


@dataclass(frozen=True)
class Settings:
    """What is measured, and where it is saved.

    Attributes:
        store: saved rows.
        fresh: measure saved rows again.
        only: names of estimators; empty: all.
        threads: of ONNX Runtime; None: the physical cores.
    """

    store: Path
    fresh: bool
    only: list[str]
    threads: int | None


@lru_cache(maxsize=1)
def network_of(name: str, every: int, threads: int | None) -> Network:
    """Return a network; the rows of one follow each other."""
    return Network(name, every, threads)


def measure(row: str, every: int, settings: Settings) -> None:
    """Measure the estimators of a row that are not saved yet."""
    name, width = row.split()
    store, searched = settings.store, SEARCHED if row in LOW else {}
    for label, calibrator in {**ESTIMATORS, **searched}.items():
        key = f"{row}, {label}, every {every}"
        saved = key in load_rows(store) and not settings.fresh
        if saved or (settings.only and label not in settings.only):
            continue
        start = time.process_time()
        network = network_of(name, every, settings.threads)
        plan = network.quantized(WIDTHS[width], calibrator, label in searched)
        context = network.context
        hits = network.hits(emit_qdq(context.model, plan, context.target))
        result = {
            "float": 100 * float(network.float.mean()),
            "quantized": 100 * float(hits.mean()),
            "hits": np.packbits(hits).tobytes().hex(),
            "images": network.data.count,
            "calibration": context.calibration.count,
            "notes": [*plan.log],
            "cpu_seconds": time.process_time() - start,
            "date": str(datetime.date.today()),
        }
        if row in LOW:
            result["distance"] = context.loss(plan)
        save_row(store, key, result)
        accuracies = f"{result['float']:.2f} -> {result['quantized']:.2f}"
        print(f"{key}: {accuracies}, {result['cpu_seconds']:.1f} s", flush=True)


def _lines(results: Mapping[str, Any], row: str, every: int) -> list[list[object]]:
    """Return the lines of a row on one share of the test images, the smallest drop first."""
    names = [*ESTIMATORS, *SEARCHED]
    measured = {n: results.get(f"{row}, {n}, every {every}") for n in names}
    drops = {n: r["float"] - r["quantized"] for n, r in measured.items() if r is not None}
    lines: list[list[object]] = []
    for label, drop in sorted(drops.items(), key=lambda item: item[1]):
        least = LARGEST[row] if every == 1 and not lines else None
        limit = ["", ""] if least is None else [f"{least:.1f}", "yes" if drop <= least else "NO"]
        result = measured[label] or {}
        distance = f"{result['distance']:.3g}" if "distance" in result else ""
        accuracy = f"{result['quantized']:.2f}"
        lines.append([row, result["images"], label, distance, accuracy, f"{drop:.2f}", *limit])
    return lines


def _wide(results: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Return the rows that every estimator has been measured on, and a line for each estimator."""
    keys = {row: f"{row}, {{}}, every {EVERY[row.split()[0]]}" for row in WIDE}
    rows = [r for r in WIDE if all(keys[r].format(n) in results for n in ESTIMATORS)]
    lines: list[list[object]] = []
    for name in ESTIMATORS if rows else ():
        drops = [
            (r["float"] - r["quantized"]) for r in (results[keys[k].format(name)] for k in rows)
        ]
        lines.append([name, *(f"{drop:.2f}" for drop in drops), f"{np.mean(drops):.3f}"])
    return rows, sorted(lines, key=lambda line: float(str(line[-1])))


def _hits(result: Mapping[str, Any]) -> np.ndarray:
    """Return whether a saved result is right, 0 or 1 for each sample."""
    packed = np.frombuffer(bytes.fromhex(result["hits"]), np.uint8)
    return np.unpackbits(packed)[: result["images"]].astype(np.int64)


def _compared(first: np.ndarray, second: np.ndarray) -> list[object]:
    """Return on how many samples only one of two is right, p of the exact test, and a verdict."""
    wins, losses = only_one_right(first, second)
    p = mcnemar(wins, losses)
    verdict = "" if p >= 0.05 else "worse" if losses > wins else "better"
    return [f"{wins} : {losses}", f"{p:.2g}", verdict]


def _best_of_other_half(others: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """Return the best estimators of each half of the samples, and their hits on the other half."""
    hits = np.zeros_like(next(iter(others.values())))
    halves = np.arange(len(hits)) % 2
    names = []
    for half in (0, 1):
        rest = halves != half
        best = max(others, key=lambda name: int(others[name][rest].sum()))
        hits[~rest] = others[best][~rest]
        names.append(best)
    return ", ".join(dict.fromkeys(names)), hits


def _tests(results: Mapping[str, Any], rows: list[str]) -> list[list[object]]:
    """Return the exact McNemar tests of `auto` against the best other estimator of each row."""
    lines: list[list[object]] = []
    for row in rows:
        key = f"{row}, {{}}, every {EVERY[row.split()[0]]}"
        each = {name: _hits(results[key.format(name)]) for name in ESTIMATORS}
        auto = each.pop("auto")
        best = max(each, key=lambda name: int(each[name].sum()))
        names, other = _best_of_other_half(each)
        accuracies = [f"{100 * hits.mean():.2f}" for hits in (auto, each[best])]
        tests = [best, *_compared(auto, each[best]), names, *_compared(auto, other)]
        lines.append([row, len(auto), *accuracies, *tests])
    return lines


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    shares = sorted({int(key.rpartition(" ")[2]) for key in results})
    low = [line for row in LOW for every in shares for line in _lines(results, row, every)]
    text = heading("Range estimators", "python -m benchmarks.estimators")
    text += (
        "\nActivations by each estimator from one pass over up to 512 training samples, weights "
        "per channel (8 bits: full range; below: least squared error, or `seqmse`: by the error of "
        "each layer's output), no step after calibration. `auto` estimates on three quarters to "
        "seven eighths of the samples and compares on the rest.\n\n"
        "## All layers at 4 and 3 bits\n\n"
        "Ordered by drop in points; one standard error of an accuracy is 0.3 points on 10,000 "
        "images, 0.6 on 2,000. Distance: Kullback-Leibler divergence from the float network on 64 "
        "held-out calibration samples, by which an estimator can be chosen without test images.\n\n"
    )
    header = ["row", "images", "estimator", "distance", "quantized %", "drop", "at most", "met"]
    text += table(header, low) + "\n" + PUBLISHED
    rows, lines = _wide(results)
    if rows:
        text += (
            "\n## Activations at 8, 6 and 4 bits, weights at 8\n\nDrop in points of each "
            "estimator; samples as in the next table.\n\n"
        )
        text += table(["estimator", *rows, "mean"], lines)
        text += (
            "\n`auto` against the best other estimator, by the exact McNemar test: samples that "
            "only `auto` : only the other gets right. First the estimator that is best on the very "
            "samples of the test, which no run can know and which chance favours, being the best "
            f"of {len(ESTIMATORS) - 1}; then, for each half of the samples, the one that is best "
            f"on the other half. Of {2 * len(rows)} tests of equal estimators, "
            f"{0.1 * len(rows):.1f} would have p < 0.05; no p is corrected for that.\n\n"
        )
        columns = ["row", "samples", "auto %", "best %"]
        columns += ["best", "right", "p", "", "best of the other half", "right", "p", ""]
        text += table(columns, _tests(results, rows))
    return text


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--every", type=int, help="of the test images; absent: 1, or as in EVERY")
    parser.add_argument("--only", nargs="*", default=[], help="names of estimators")
    parser.add_argument("--fresh", action="store_true", help="measure saved rows again")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime")
    arguments = parser.parse_args()
    store = results_folder() / "estimators.json"
    settings = Settings(store, arguments.fresh, arguments.only, arguments.threads)
    for row in arguments.rows or [*LOW, *WIDE]:
        every = arguments.every or (EVERY[row.split()[0]] if row in WIDE else 1)
        measure(row, every, settings)
        store.with_suffix(".md").write_text(page(load_rows(store)))


if __name__ == "__main__":
    main()
