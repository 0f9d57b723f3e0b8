"""What int16 saturation costs a network, and what avoiding it costs: resnet20 on CIFAR-10.

    QTOOL_DATA=... python -m benchmarks.saturation

The kernels without VNNI are simulated: the integer-only reference with sums that lose what pairs of
products lose. Writes benchmarks/results/saturation.md.
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


def lost(work: Work, codes: torch.Tensor) -> torch.Tensor:
    """What pairs lose of a Conv's sums, everywhere: int64, the shape of its output."""
    if work.weight is None or not (rows := orders(work.node, work.weight)):
        return torch.zeros((), dtype=torch.int64)
    x, given = codes, {k: a.value for k, a in work.node.attributes.items()}
    pads, kernel = given.get("pads", [0] * 4), work.weight.shape[2:]
    step = given.get("strides", [1, 1])
    zero = int(work.grids[0].zero_point)
    x = torch.nn.functional.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=zero)
    windows = x.unfold(2, kernel[0], step[0]).unfold(3, kernel[1], step[1])
    patches = windows.permute(0, 2, 3, 4, 5, 1)  # [batch, height, width, kernel, kernel, channels]
    flat = patches.reshape(-1, rows[0].shape[1]).numpy().astype(np.uint8)
    found = torch.from_numpy(excess(flat, rows[0]))
    return found.reshape(*patches.shape[:3], -1).permute(0, 3, 1, 2)


def saturating(work: Work) -> Kernel:
    """The Conv kernel with saturating pairs: what is lost enters as a bias of each sum."""
    exact = weighted(work)
    if work.node.op_type != "Conv":
        return exact
    sums = weighted(replace(work, y=None))

    def run(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        total = sums(inputs) + lost(work, inputs[0]).to(torch.int32)
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
    asked = recipe_from_keywords(recipe(NETWORKS["resnet20"], 0), "here", Path("/"), files=True)
    model = qtool.load(str(asked.model))
    if asked.evaluate is None:
        raise AssertionError("no labels")
    same = {"preprocess": asked.evaluate.preprocess or asked.calibrate.preprocess}
    data = open_dataset(asked.evaluate.model_copy(update=same), model.inputs)
    data = data.take(list(range(0, data.count, every)))
    rows = []
    for name, options in CASES:
        made = qtool.quantize(model, open_dataset(asked.calibrate, model.inputs), **options)
        graph, plan = made._graph, made.quantization
        accuracies = []
        for builder in (weighted, saturating):
            BUILDERS["Conv"] = builder
            whole = integer_network.IntegerNetwork(graph, plan)
            found = [
                whole({n: b[n] for n in model.inputs})[graph.graph.outputs[0].name or ""].argmax(1)
                for b in data.batches(16)
            ]
            accuracies.append(100 * np.mean(np.concatenate(found) == np.asarray(data.labels)))
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
