"""Accuracy lost to int16 saturation, and to avoiding it: resnet20 on CIFAR-10.

    QTOOL_DATA=... python -m benchmarks.saturation

The kernels without VNNI are simulated: the integer-only reference with pairs of products
that saturate. Writes benchmarks/results/saturation.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qtool
from benchmarks.machine import heading, results_folder, table
from benchmarks.networks import NETWORKS, recipe
from qtool.data import open_dataset
from qtool.recipe.loader import recipe_from_keywords
from qtool.simulation import integer_network
from qtool.simulation.integer_kernels import BUILDERS, Kernel, Work, weighted
from qtool.weights.int16_saturation import at_risk, excess, orders

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("8 bits", {}),
    ("8 bits, safe scales", {"target": "onnxruntime-cpu-no-vnni"}),
    ("7 bits", {"bits": {"weights": 7}}),
)


def saturation_error(work: Work, codes: torch.Tensor) -> torch.Tensor:
    """Return the error that saturating pairs add to a Conv's sums: int64, shape of its output."""
    if work.weight is None or not (rows := orders(work.node, work.weight)):
        return torch.zeros((), dtype=torch.int64)
    x, attributes = codes, {k: a.value for k, a in work.node.attributes.items()}
    pads, kernel = attributes.get("pads", [0] * 4), work.weight.shape[2:]
    step = attributes.get("strides", [1, 1])
    zero = int(work.grids[0].zero_point)
    x = torch.nn.functional.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=zero)
    windows = x.unfold(2, kernel[0], step[0]).unfold(3, kernel[1], step[1])
    patches = windows.permute(0, 2, 3, 4, 5, 1)  # [batch, height, width, kernel, kernel, channels]
    flat = patches.reshape(-1, rows[0].shape[1]).numpy().astype(np.uint8)
    errors = torch.from_numpy(excess(flat, rows[0]))
    return errors.reshape(*patches.shape[:3], -1).permute(0, 3, 1, 2)


def saturating(work: Work) -> Kernel:
    """Build a kernel whose Conv sums have the error of saturating pairs added."""
    exact = weighted(work)
    if work.node.op_type != "Conv":
        return exact
    sums = weighted(replace(work, y=None))

    def run(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        total = sums(inputs) + saturation_error(work, inputs[0]).to(torch.int32)
        return total if work.y is None else _requantized(work, total)

    return run


def _requantized(work: Work, total: torch.Tensor) -> torch.Tensor:
    x, w, y = work.grids[0], work.weight_grid, work.out
    if w is None:
        raise AssertionError("no weights")
    alpha = np.asarray((x.scale * w.scale) / y.scale, np.float64)
    values = total.double() * torch.from_numpy(alpha).reshape(1, -1, 1, 1)
    return work.saturate(values.round() + int(y.zero_point))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=10, help="of the CIFAR-10 test images")
    every = parser.parse_args().every
    loaded_recipe = recipe_from_keywords(
        recipe(NETWORKS["resnet20"], 0), "here", Path("/"), files=True
    )
    model = qtool.load(str(loaded_recipe.model))
    if loaded_recipe.evaluate is None:
        raise AssertionError("no labels")
    same = {"preprocess": loaded_recipe.evaluate.preprocess or loaded_recipe.calibrate.preprocess}
    data = open_dataset(loaded_recipe.evaluate.model_copy(update=same), model.inputs)
    data = data.take(list(range(0, data.count, every)))
    rows = []
    for name, options in CASES:
        quantized = qtool.quantize(
            model, open_dataset(loaded_recipe.calibrate, model.inputs), **options
        )
        graph, plan = quantized._graph, quantized.quantization
        accuracies = []
        for builder in (weighted, saturating):
            BUILDERS["Conv"] = builder
            network = integer_network.IntegerNetwork(graph, plan)
            classes = [
                network({n: b[n] for n in model.inputs})[graph.graph.outputs[0].name or ""].argmax(
                    1
                )
                for b in data.batches(16)
            ]
            accuracies.append(100 * np.mean(np.concatenate(classes) == np.asarray(data.labels)))
        BUILDERS["Conv"] = weighted
        shown = [f"{a:.2f}" for a in accuracies]
        rows.append([name, len(at_risk(graph, plan)), *shown])
        print(*rows[-1], flush=True)
    text = heading("int16 saturation: resnet20", "python -m benchmarks.saturation")
    text += f"\n{data.count} images; kernels without VNNI are simulated, not executed.\n\n"
    text += table(["weights", "layers at risk", "exact sums %", "saturating pairs %"], rows)
    (results_folder() / "saturation.md").write_text(text)


if __name__ == "__main__":
    main()
