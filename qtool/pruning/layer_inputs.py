"""Prune layers in order, each on the moments of its inputs, with the layers before it pruned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qtool.graph.queries import by_name
from qtool.pruning.masks import input_axis
from qtool.pruning.method import PrunedLayer, with_masks
from qtool.ptq.second_order.covariance import LayerMoments, layer_moments
from qtool.ptq.second_order.layer_rounding import Layer, matrix_layers
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context
from qtool.steps.layerwise import LayerwiseRun


@dataclass(frozen=True)
class ColumnSets:
    """Columns of a matrix in sets, of each of which so many weights of a row may be removed.

    Attributes:
        columns: [sets, size]; sets of one column where any positions may be removed.
        removed: of each set, at most.
    """

    columns: np.ndarray
    removed: int

    def open_scores(self, scores: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Return the scores of the weights that may be removed next, infinity for the others.

        That is the lowest of each set, and none of a set of which enough are removed.

        Args:
            scores: [rows, unknowns].
            taken: [rows, unknowns], True for what was removed before.
        """
        rest = np.where(taken, np.inf, scores)[:, self.columns]
        lowest = np.argmin(rest, 2)[:, :, None]
        is_full = taken[:, self.columns].sum(2, keepdims=True) >= self.removed
        values = np.where(is_full, np.inf, np.take_along_axis(rest, lowest, 2))[:, :, 0]
        places = self.columns[np.arange(len(self.columns)), lowest[:, :, 0]]
        result = np.full(scores.shape, np.inf)
        np.put_along_axis(result, places, values, 1)
        return result


@dataclass(frozen=True)
class Rows:
    """The weights of a layer as rows, one for each output channel, and how many of each go.

    Attributes:
        weights: [groups, outputs, unknowns], float64.
        moments: of the layer's inputs.
        sets: of columns.
        counts: weights to remove of each row, [groups, outputs].
    """

    weights: np.ndarray
    moments: LayerMoments
    sets: ColumnSets
    counts: np.ndarray


def prune_in_order(
    plan: QuantPlan,
    layers: Sequence[PrunedLayer],
    context: Context,
    samples: int,
    centred: bool,
    prune: Callable[[Rows], np.ndarray],
) -> QuantPlan:
    """Return the plan with masks and float arrays of layers, and with biases that keep the means.

    Inputs are those of the network with rounded activations and with the weights before rounding.
    Layers that are no matrix product, or compute in floats, are pruned by magnitude.

    Args:
        plan: every grid is calibrated.
        layers: to prune.
        context: the ``fit`` samples are read.
        samples: of the calibration data, at most.
        centred: moments about the means, where a layer has a bias to take up the means.
        prune: returns the pruned weights of one layer, in the shape of ``Rows.weights``.
    """
    by_weight = {layer.weight: layer for layer in layers}
    values = by_name(context.model.graph)
    # Without grids the weights that are pruned already are read as they are.
    bare = {name: grid for name, grid in plan.grid_of.items() if name not in by_weight}
    masks: dict[str, np.ndarray] = {}
    with LayerwiseRun(context, replace(plan, grid_of=bare), "pruning", samples) as run:
        for site, form in matrix_layers(run, run.plan, context):
            layer = by_weight.get(site.weight or "")
            if layer is None or layer.weight in masks:
                continue
            about_mean = centred and form.bias is not None
            moments = layer_moments(
                run, site, form.form, form.weights, about_mean, seed=context.seed
            )
            if not moments.total.rows:
                continue
            pruned = prune(_rows(layer, form, moments))
            array = form.form.from_matrices(pruned).astype(np.float32)
            masks[layer.weight] = array != 0
            overrides = {**run.plan.weight_overrides, layer.weight: array}
            run.plan = replace(run.plan, weight_overrides=overrides)
            if about_mean and site.bias is not None:
                total = moments.total
                shift = form.weights @ total.mean_float[:, :, None]
                shift = (shift - pruned @ total.mean_quantized[:, :, None]).reshape(-1)
                run.plan = run.plan.with_bias_shift(site.bias, values[site.bias], shift)
        overrides = dict(run.plan.weight_overrides)
    for name, layer in by_weight.items():
        if name not in masks:
            masks[name] = layer.mask(np.abs(plan.weight(name, layer.value)))
    return with_masks(replace(plan, weight_overrides=overrides), layers, masks)


def _rows(layer: PrunedLayer, form: Layer, moments: LayerMoments) -> Rows:
    """Return the rows of a layer and what may be removed of each."""
    groups, outputs, unknowns = form.weights.shape
    if layer.pattern is None:
        # Rounded so that the layer as a whole has its sparsity, also where rows are short.
        total = np.rint(layer.sparsity * unknowns * np.arange(groups * outputs + 1))
        counts = np.diff(total).astype(int).reshape(groups, outputs)
        return Rows(form.weights, moments, ColumnSets(np.arange(unknowns)[:, None], 1), counts)
    pattern = layer.pattern
    sets = ColumnSets(_consecutive_inputs(layer, form, pattern.m), pattern.m - pattern.n)
    counts = np.full((groups, outputs), len(sets.columns) * sets.removed)
    return Rows(form.weights, moments, sets, counts)


def _consecutive_inputs(layer: PrunedLayer, form: Layer, m: int) -> np.ndarray:
    """Return the columns of each m consecutive input channels at one place of the kernel."""
    shape = form.form.shape
    numbers = np.moveaxis(np.arange(np.prod(shape)).reshape(shape), input_axis(layer.node), -1)
    first = np.repeat(numbers[..., ::m], m, -1)
    sets = form.form.matrices(np.moveaxis(first, -1, input_axis(layer.node)))[0, 0]
    return np.argsort(sets, kind="stable").reshape(-1, m)
