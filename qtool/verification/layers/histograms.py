"""Histograms of the weights and inputs of layers, with the range of their grid and channels."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import WEIGHTED_OPS, by_name, nodes_by_name, weight_axis
from qtool.quant.plan import QuantPlan
from qtool.report.layer_schema import Histogram, Layer
from qtool.verification.layers.measure import InputValues, LayerMeasure
from qtool.verification.layers.table import decibels

BINS = 48
# More channels than these are shown as the largest of every group of neighbours.
CHANNELS = 64
# Weights that are read for histograms, those of the weakest layers first; it bounds the time, and
# the memory of models whose weights stay in their file.
WEIGHTS = 50_000_000


def with_measures(
    layers: Sequence[Layer],
    model: ir.Model,
    plan: QuantPlan,
    measures: Mapping[str, LayerMeasure],
) -> list[Layer]:
    """Return the layers with cumulative noise and the histograms of their weights and inputs.

    Args:
        layers: of the report.
        model: the rewritten graph.
        plan: frozen.
        measures: layer -> what was measured on samples.
    """
    weights = _weight_histograms(layers, model, plan)
    result = []
    for layer in layers:
        measure = measures.get(layer.name)
        values = None if measure is None else measure.values
        update = {
            "weights": weights.get(layer.name),
            "cumulative_sqnr_db": None if measure is None else decibels(measure.cumulative.db),
            "inputs": None if values is None or not values.count else input_histogram(values),
        }
        result.append(layer.model_copy(update=update))
    return result


def _weight_histograms(
    layers: Sequence[Layer], model: ir.Model, plan: QuantPlan
) -> dict[str, Histogram]:
    """Return layer -> histogram of its weights, for as many as WEIGHTS allows."""
    nodes, values = nodes_by_name(model.graph), by_name(model.graph)
    measured = [layer for layer in layers if layer.sqnr_db is not None]
    result: dict[str, Histogram] = {}
    count = 0
    for layer in sorted(measured, key=lambda layer: (layer.sqnr_db, layer.name)):
        site, node = plan.sites.get(layer.name), nodes.get(layer.name)
        weight = site.weight if site is not None else None
        if weight is None or node is None or node.op_type not in WEIGHTED_OPS:
            continue
        array = plan.weight(weight, values[weight])
        count += array.size
        if result and count > WEIGHTS:
            break
        made = weight_histogram(array, weight_axis(node), plan, weight)
        result |= {} if made is None else {layer.name: made}
    return result


def weight_histogram(array: np.ndarray, axis: int, plan: QuantPlan, name: str) -> Histogram | None:
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
    # float64 has numbers between any two of float32, so that the bins of equal weights differ.
    counts, edges = np.histogram(array.astype(np.float64), BINS)
    limits = np.abs(array).max(axis=tuple(k for k in range(array.ndim) if k != axis))
    return Histogram(
        low=_rounded(edges[0]),
        high=_rounded(edges[-1]),
        counts=counts.tolist(),
        grid=(_rounded(grid.lo.min()), _rounded(grid.hi.max())),
        channels=_channels(limits),
    )


def input_histogram(values: InputValues) -> Histogram:
    """Return the histogram of the values that a layer reads.

    Args:
        values: at least one.
    """
    stats = values.stats
    while len(stats.histogram) > BINS:
        stats = stats.coarsened(stats.exponent + 1)
    edges = stats.edges
    return Histogram(
        low=_rounded(edges[0]),
        high=_rounded(edges[-1]),
        counts=stats.histogram.tolist(),
        grid=(_rounded(values.params.lo.min()), _rounded(values.params.hi.max())),
        channels=_channels(values.channels),
        outside=_rounded(values.outside / values.count, 4),
    )


def _channels(limits: np.ndarray) -> list[float]:
    """Return the largest magnitude of every channel, or of groups of neighbours."""
    groups = np.array_split(limits, min(CHANNELS, len(limits)))
    return [_rounded(group.max(), 4) for group in groups]


def _rounded(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")
