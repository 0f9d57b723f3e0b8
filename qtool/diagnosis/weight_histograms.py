"""Histograms of the weights of a few layers, with the range of their grid and of every channel."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import WEIGHTED_OPS, by_name, nodes_by_name, weight_axis
from qtool.quant.plan import QuantPlan
from qtool.report.schema import Layer, WeightHistogram

# Layers that get one: those with the lowest signal to noise, which the report marks.
LAYERS = 3
BINS = 48
# More channels than these are shown as the largest of every group of neighbours.
CHANNELS = 96


def with_histograms(layers: Sequence[Layer], model: ir.Model, plan: QuantPlan) -> list[Layer]:
    """Return the layers, the weakest of them with a histogram of their float weights.

    Args:
        layers: of the report.
        model: the rewritten graph.
        plan: frozen.
    """
    measured = [layer for layer in layers if layer.sqnr_db is not None]
    weakest = sorted(measured, key=lambda layer: (layer.sqnr_db, layer.name))[:LAYERS]
    names = {layer.name for layer in weakest}
    nodes, values = nodes_by_name(model.graph), by_name(model.graph)
    result = []
    for layer in layers:
        site, node = plan.sites.get(layer.name), nodes.get(layer.name)
        weight = site.weight if site is not None and layer.name in names else None
        if weight is None or node is None or node.op_type not in WEIGHTED_OPS:
            result.append(layer)
            continue
        array = plan.weight(weight, values[weight])
        shown = weight_histogram(array, weight_axis(node), plan, weight)
        result.append(layer.model_copy(update={"weights": shown}))
    return result


def weight_histogram(
    array: np.ndarray, axis: int, plan: QuantPlan, name: str
) -> WeightHistogram | None:
    """Return the histogram of a weight; None where it has no grid.

    Args:
        array: float.
        axis: of the output channels.
        plan: holds the grid.
        name: of the weight.
    """
    grid = plan.params(name)
    if grid is None:
        return None
    counts, edges = np.histogram(array, BINS)
    limits = np.abs(array).max(axis=tuple(k for k in range(array.ndim) if k != axis))
    groups = np.array_split(limits, min(CHANNELS, len(limits)))
    return WeightHistogram(
        low=_rounded(edges[0]),
        high=_rounded(edges[-1]),
        counts=counts.tolist(),
        grid=(_rounded(grid.lo.min()), _rounded(grid.hi.max())),
        channels=[_rounded(group.max()) for group in groups],
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
