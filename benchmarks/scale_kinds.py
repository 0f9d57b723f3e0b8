"""Accuracy with scales for hardware without floats: W8A8, each kind of `qtool list scales`.

    QTOOL_DATA=... python -m benchmarks.scale_kinds

Calibrates once for all kinds and evaluates the files in ONNX Runtime. Writes
benchmarks/results/scale_kinds.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

import qtool
from benchmarks.machine import heading, results_folder, table
from benchmarks.networks import NETWORKS, recipe
from qtool.annotation.annotator import annotate
from qtool.calibration import MSE
from qtool.calibration.collect import choose_grids, collect, observed_values
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
from qtool.weights.scale_constraints import constrain_plan_scales, request_scale_kind

KINDS = ("float", "fixed_point:16", "double_shift", "power_of_two")
NAMES = ("resnet20", "mobilenet_v2", "squeezenet1_1", "fsdd_dscnn")
# Published results of N2D2's post-training quantization, single shift unless noted.
PUBLISHED = (
    "N2D2's published drops, ImageNet, 1000 calibration images: MobileNetV2 70.95 -> 65.40 (single "
    "shift) and 66.70 (fixed point), SqueezeNet 57.58 -> 54.98, ResNet-18 69.83 -> 68.78.\n"
)


def files(calibration: Dataset, model: qtool.Model) -> Iterator[tuple[str, ir.Model]]:
    """Yield the float file, then one for each kind of scales; statistics are collected once."""
    yield "none", model._graph
    target, graph = load_target("onnxruntime-cpu"), model._graph.clone()
    first = next(iter(calibration.batches(1)))
    bind_shapes(graph, {name: first[name].shape for name in model.inputs})
    for rewrite in target.rewrites:
        REWRITES[rewrite](graph, lambda node: True)
        infer_shapes(graph)
    batches = ({n: batch[n] for n in model.inputs} for batch in calibration.batches(16))
    stats = None
    for kind in KINDS:
        plan = weight_grids(graph, request_scale_kind(annotate(graph, target, Bits()), kind))
        if stats is None:
            stats = collect(graph, observed_values(graph, plan), batches, histograms=True)
        plan = constrain_plan_scales(graph, choose_grids(plan, stats, MSE()))
        yield kind, emit_qdq(graph, freeze(graph, plan), target)


def correct(file: ir.Model, data: Dataset, inputs: list[str]) -> np.ndarray:
    """Return a mask of the samples that the file classifies correctly."""
    out = [file.graph.outputs[0].name or ""]
    classes = []
    with OrtSession(file, out) as session:
        for batch in data.batches(16):
            scores = session.stream({name: batch[name] for name in inputs})[out[0]]
            classes.append(scores.reshape(len(scores), -1).argmax(1))
    return np.concatenate(classes) == np.asarray(data.labels)


def measure(name: str, every: int) -> list[list[object]]:
    """Return rows of float and quantized accuracy over all folds, with drops in points."""
    kinds: dict[str, list[np.ndarray]] = {}
    for fold in range(len(NETWORKS[name].folds)):
        loaded_recipe = recipe_from_keywords(
            recipe(NETWORKS[name], fold), "here", Path("/"), files=True
        )
        model = qtool.load(str(loaded_recipe.model))
        if loaded_recipe.evaluate is None:
            raise AssertionError(f"{name} has no labels")
        same = {
            "preprocess": loaded_recipe.evaluate.preprocess or loaded_recipe.calibrate.preprocess
        }
        data = open_dataset(loaded_recipe.evaluate.model_copy(update=same), model.inputs)
        if len(NETWORKS[name].folds) == 1 and data.count > 5000:
            data = data.take(list(range(0, data.count, every)))
        calibration = open_dataset(loaded_recipe.calibrate, model.inputs)
        for kind, file in files(calibration, model):
            kinds.setdefault(kind, []).append(correct(file, data, list(model.inputs)))
    shares = {kind: 100 * np.concatenate(parts).mean() for kind, parts in kinds.items()}
    count = sum(map(len, kinds["none"]))
    rows: list[list[object]] = []
    for kind in KINDS:
        drop = shares["none"] - shares[kind]
        rows.append(
            [name, kind, count, f"{shares['none']:.2f}", f"{shares[kind]:.2f}", f"{drop:.2f}"]
        )
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=5, help="of the CIFAR-10 test images")
    parser.add_argument("names", nargs="*", default=NAMES)
    chosen = parser.parse_args()
    rows = [row for name in chosen.names for row in measure(name, chosen.every)]
    header = ["network", "scales", "samples", "float %", "quantized %", "drop"]
    text = heading("Scales without floats", "python -m benchmarks.scale_kinds")
    text += "\nWeights int8 per channel, activations uint8, no step after calibration.\n\n"
    text += table(header, rows) + "\n" + PUBLISHED
    (results_folder() / "scale_kinds.md").write_text(text)


if __name__ == "__main__":
    main()
