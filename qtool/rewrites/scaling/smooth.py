"""Move outliers of activations into the weights that read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.channels import Channels, Group, Layer
from qtool.graph.layers import oriented_weight
from qtool.graph.queries import constant
from qtool.quant.primitives import (
    PerChannel,
    PerTensor,
    QuantSpec,
    fake_quantize,
    params_from_range,
)
from qtool.rewrites.rewrite import IsInteger, Samples
from qtool.rewrites.scaling.equalize import replace_array, scale_layer

ALPHAS = tuple(np.round(np.arange(0, 1.01, 0.05), 2).tolist())

# Rows of an activation that the error is measured on; more change the choice of alpha rarely.
ROWS = 1024


@dataclass(frozen=True, eq=False)
class _Input:
    """A layer's input: range per channel, and some rows of other samples, [rows, channels]."""

    lower: np.ndarray
    upper: np.ndarray
    rows: np.ndarray


def smooth(model: ir.Model, is_integer: IsInteger, samples: Samples) -> int:
    """Move outliers of linear layers' inputs into their weights (SmoothQuant); optional.

    For a channel j that a LayerNormalization or a linear layer writes and linear layers read::

        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha),   X_j /= s_j,   W_j *= s_j

    with the maxima over calibration samples and over all layers that read the channel. 1 / s goes
    into the factors that write it. alpha is searched from 0 to 1 for each group of layers, on the
    squared error of their outputs with inputs rounded per tensor and weights per output channel,
    on samples that the ranges were not taken from; where none lowers the error, nothing changes.
    A channel that anything else reads (the residual sum behind a LayerNormalization) is left.

    Source: Xiao et al. 2023, sec. 4, arXiv:2211.10438.
    Departure: alpha is searched for each group of layers; the paper has one for the network.
    """
    channels = Channels(model.graph, norms=True)
    for _, numbers in channels.clips:
        channels.fix(numbers)
    groups = [
        group
        for group in channels.groups()
        if all(_is_linear(r.node) and is_integer(r.node) for r in group.readers)
    ]
    names = sorted({_input_name(r) for g in groups for r in g.readers})
    inputs = _inputs(names, samples) if names else {}
    scales, chosen = np.ones(channels.count), []
    for group in groups:
        alpha = _choose(group, inputs, scales, samples)
        chosen += [] if alpha is None else [f"{alpha:g}"]
    for layer in channels.layers:
        scale_layer(layer, scales)
    for node, numbers in channels.norms:
        for value in node.inputs[1:]:
            array = constant(value)
            if value is not None and array is not None:
                scaled = array.astype(np.float64) / scales[numbers]
                replace_array(value, scaled.astype(array.dtype))
    if chosen:
        model.meta["smooth"] = f"alpha {', '.join(chosen)} for {len(groups)} groups of layers"
    return len(chosen)


def _is_linear(node: ir.Node) -> bool:
    return node.op_type in ("Gemm", "MatMul")


def _input_name(layer: Layer) -> str:
    value = layer.node.inputs[0]
    return (value.name if value is not None else "") or ""


def _inputs(names: Sequence[str], samples: Samples) -> dict[str, _Input]:
    """Return ranges from the samples that are fitted to, and rows of the others."""
    lower = dict.fromkeys(names, np.inf)
    upper = dict.fromkeys(names, -np.inf)
    for batch in samples.observe(names, False):
        for name, array in batch.items():
            flat = array.reshape(-1, array.shape[-1])
            lower[name] = np.minimum(lower[name], flat.min(0))
            upper[name] = np.maximum(upper[name], flat.max(0))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in samples.observe(names, True):
        for name, array in batch.items():
            rows[name].append(array.reshape(-1, array.shape[-1]))
    return {name: _Input(lower[name], upper[name], _thinned(rows[name])) for name in names}  # type: ignore[arg-type]


def _thinned(parts: list[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(parts)
    return rows[:: max(1, len(rows) // ROWS)][:ROWS].astype(np.float64)


def _choose(
    group: Group, inputs: Mapping[str, _Input], scales: np.ndarray, samples: Samples
) -> float | None:
    """Set the scales of a group to the best ones; return alpha, None where 1 is best."""
    x_peak, w_peak = np.zeros(len(scales)), np.zeros(len(scales))
    for reader in group.readers:
        x, numbers = inputs[_input_name(reader)], reader.inputs[0]
        np.maximum.at(x_peak, numbers, np.maximum(np.abs(x.lower), np.abs(x.upper)))
        np.maximum.at(w_peak, numbers, np.abs(_weight(reader)).max(0))
    best, chosen = _error(group, inputs, scales, samples), None
    start = scales.copy()
    for alpha in ALPHAS:
        trial = start.copy()
        peaks = x_peak[group.numbers], w_peak[group.numbers]
        trial[group.numbers] = smoothing_scales(*peaks, alpha)
        error = _error(group, inputs, trial, samples)
        if error < best:
            best, chosen = error, alpha
            scales[:] = trial
    return chosen


def smoothing_scales(x_peak: np.ndarray, w_peak: np.ndarray, alpha: float) -> np.ndarray:
    """Return s = max|X|^alpha / max|W|^(1 - alpha); 1 where either is 0.

    Args:
        x_peak: largest |X| of every channel.
        w_peak: largest |W| of every channel.
        alpha: 0 to 1.
    """
    alive = (x_peak > 0) & (w_peak > 0)
    x, w = np.where(alive, x_peak, 1.0), np.where(alive, w_peak, 1.0)
    return np.asarray(x**alpha / w ** (1 - alpha))


def _weight(layer: Layer) -> np.ndarray:
    """Return a linear layer's weight as float64 [outputs, inputs]."""
    return oriented_weight(layer.node)[0, :, :, 0]


def _error(
    group: Group, inputs: Mapping[str, _Input], scales: np.ndarray, samples: Samples
) -> float:
    """Return the readers' squared output error relative to their power, summed."""
    total = 0.0
    for reader in group.readers:
        widths = samples.widths(reader.node)
        x, w, s = inputs[_input_name(reader)], _weight(reader), scales[reader.inputs[0]]
        spec = QuantSpec(widths.activations or 8, False, False, PerTensor())
        low, high = (x.lower / s).min(), (x.upper / s).max()
        grid = params_from_range(np.asarray(low), np.asarray(high), spec)
        rounded = np.asarray(fake_quantize(x.rows / s, grid))
        spec = QuantSpec(widths.weights or 8, True, True, PerChannel(0))
        peaks = np.abs(w * s).max(1)
        weight = np.asarray(fake_quantize(w * s, params_from_range(-peaks, peaks, spec)))
        y = x.rows @ w.T
        total += float(((rounded @ weight.T - y) ** 2).sum() / (np.square(y).sum() or 1.0))
    return total
