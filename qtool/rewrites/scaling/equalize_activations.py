"""Equalize the ranges of activations, channel by channel, for grids that span all channels."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.channels import Channels, Layer
from qtool.graph.layers import oriented_weight
from qtool.graph.queries import clip_limits, name_of
from qtool.rewrites.rewrite import IsInteger, Samples
from qtool.rewrites.scaling.equalize import scale_layer

# Exponents of a channel's range; 1 gives all channels one range.
ALPHAS = tuple(np.round(np.arange(0.1, 1.01, 0.1), 1).tolist())
# Smallest range of a channel relative to the largest: a channel that is nearly constant in the
# samples must not become as large as the others.
SMALLEST = 1 / 64


@dataclass(frozen=True, eq=False)
class _Moments:
    """Smallest and largest value and mean square of each channel, float64 [C]."""

    low: np.ndarray
    high: np.ndarray
    power: np.ndarray

    @property
    def peak(self) -> np.ndarray:
        """Largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that reads channels, with what its rounding error depends on.

    Attributes:
        numbers: of its input channels, [groups, inputs].
        x: of its input, parts [groups, inputs].
        peaks: largest |W| over the kernel, [groups, outputs, inputs].
        norms: sum of W^2 over outputs and kernel, [groups, inputs].
        kernel: positions of the kernel.
        levels: largest codes of the input and of the weights.
    """

    numbers: np.ndarray
    x: _Moments
    peaks: np.ndarray
    norms: np.ndarray
    kernel: int
    levels: tuple[int, int]

    def error(self, scales: np.ndarray) -> float:
        """Return the expected squared error of the output relative to its power.

        Args:
            scales: of every channel number.
        """
        s = scales[self.numbers]
        low, high, power = self.x.low / s, self.x.high / s, self.x.power / s**2
        step = (max(high.max(), 0.0) - min(low.min(), 0.0)) / self.levels[0]
        steps = (self.peaks * s[:, None, :]).max(2) / self.levels[1]
        # A channel below half a step is rounded to 0: its error is its own power.
        inputs = (np.minimum(step**2 / 12, power) * s**2 * self.norms).sum()
        weights = (steps**2).sum(1) @ power.sum(1) * self.kernel / 12
        return float((inputs + weights) / ((self.x.power * self.norms).sum() or 1.0))


def equalize_activations(model: ir.Model, is_integer: IsInteger, samples: Samples) -> int:
    """Equalize the ranges of activations, channel by channel; for activations below 8 bits.

    An activation has one scale for all channels, so that a channel of small values has few codes.
    For a channel c that layers write and layers read, with r_c = max|x_c| over samples::

        s_c = (r_c / max_c r_c)^alpha,   x_c /= s_c,   W1[c, :] /= s_c,   b1[c] /= s_c,
        W2[:, c] *= s_c

    which costs nothing in the layer that writes it, whose weights have a scale per channel, nor in
    a depthwise layer that reads it. alpha is searched for each group of channels on the expected
    error of the layers that read them, with uniform rounding errors: step^2 / 12 of every input
    and weight. Between the layers may be what commutes with a positive factor, as for `equalize`.

    A Clip [0, h] (ReLU6) then limits channel c at s_c h >= r_c: only values beyond those of all
    samples change. A channel that reaches h in a sample keeps its scale.

    Source: Meller et al. 2019, "Same, Same But Different", arXiv:1902.01917 (equal ranges of
        activations); Xiao et al. 2023, sec. 4, arXiv:2211.10438 (the exponent).
    Departure: the exponent is searched by the rounding errors of both; ReLU6 is passed.
    """
    channels = Channels(model.graph)
    for node, numbers in channels.clips:
        high = clip_limits(node)[1]
        if high is None or high <= 0:
            channels.fix(numbers)
    groups = [g for g in channels.groups() if all(is_integer(x.node) for x in g.readers)]
    if not groups:
        return 0
    inputs = {_input(layer) for group in groups for layer in group.readers}
    limited = {out for node, _ in channels.clips for out in node.outputs}
    moments = _observe(channels, inputs | limited, samples)
    least, most = _scale_limits(channels, moments)
    scales, chosen = np.ones(channels.count), []
    for group in groups:
        readers = [_reader(layer, moments[_input(layer)], samples) for layer in group.readers]
        alpha = _choose(group.numbers, readers, scales, (least, most))
        chosen += [] if alpha is None else [alpha]
    for layer in channels.layers:
        scale_layer(layer, scales)
    if chosen:
        model.meta["equalize_activations"] = (
            f"alpha {min(chosen):g} to {max(chosen):g} for {len(chosen)} of {len(groups)} groups "
            "of channels"
        )
    return len(chosen)


def _input(layer: Layer) -> ir.Value:
    value = layer.node.inputs[0]
    assert value is not None
    return value


def _observe(
    channels: Channels, values: Collection[ir.Value], samples: Samples
) -> dict[ir.Value, _Moments]:
    """Return the moments of values over the samples that are fitted to."""
    by_name = {name_of(value): value for value in values}
    axes = {value: followed[1] for value in values if (followed := channels.of(value))}
    parts: dict[ir.Value, list[np.ndarray]] = {}
    rows = dict.fromkeys(values, 0)
    for batch in samples.observe(sorted(by_name), False):
        for name, array in batch.items():
            value = by_name[name]
            axis = axes[value]
            flat = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
            low, high, total = flat.min(1), flat.max(1), np.square(flat, dtype=np.float64).sum(1)
            old = parts.get(value, [low, high, np.zeros_like(total)])
            parts[value] = [np.minimum(old[0], low), np.maximum(old[1], high), old[2] + total]
            rows[value] += flat.shape[1]
    return {
        value: _Moments(low.astype(np.float64), high.astype(np.float64), total / rows[value])
        for value, (low, high, total) in parts.items()
    }


def _scale_limits(
    channels: Channels, moments: Mapping[ir.Value, _Moments]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest scale of every channel, with which no Clip changes a sample.

    A channel that reaches the limit of a Clip in a sample keeps the scale 1.
    """
    least, most = np.zeros(channels.count), np.full(channels.count, np.inf)
    for node, written in channels.clips:
        numbers, high = channels.number(written), clip_limits(node)[1]
        if high is None or not 0 < high < np.inf:
            continue
        share = moments[node.outputs[0]].high / high
        np.maximum.at(least, numbers, np.clip(share, 0, 1))
        np.minimum.at(most, numbers, np.where(share < 1 - 1e-6, np.inf, 1.0))
    return least, most


def _reader(layer: Layer, x: _Moments, samples: Samples) -> _Reader:
    array = oriented_weight(layer.node)
    widths, shape = samples.widths(layer.node), layer.inputs.shape
    return _Reader(
        numbers=layer.inputs,
        x=_Moments(x.low.reshape(shape), x.high.reshape(shape), x.power.reshape(shape)),
        peaks=np.abs(array).max(3, initial=0.0),
        norms=np.square(array).sum((1, 3)),
        kernel=array.shape[3],
        levels=(2 ** (widths.activations or 8) - 1, 2 ** ((widths.weights or 8) - 1) - 1),
    )


def _choose(
    numbers: np.ndarray,
    readers: Sequence[_Reader],
    scales: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
) -> float | None:
    """Set the scales of a group to the best ones; return alpha, None where 1 is best.

    Args:
        numbers: of the group's channels.
        readers: layers that read them.
        scales: of all channels, changed in place.
        limits: least and largest scale of all channels.
    """
    peaks = np.zeros(len(scales))
    for reader in readers:
        largest = reader.x.peak.max() or 1.0
        np.maximum.at(peaks, reader.numbers, reader.x.peak / largest)
    peak, start = peaks[numbers], scales.copy()
    best, chosen = sum(reader.error(scales) for reader in readers), None
    for alpha in ALPHAS:
        trial = start.copy()
        equal = np.where(peak > 0, np.maximum(peak, SMALLEST), 1.0) ** alpha
        trial[numbers] = np.clip(equal, limits[0][numbers], limits[1][numbers])
        error = sum(reader.error(trial) for reader in readers)
        if error < best:
            best, chosen = error, alpha
            scales[:] = trial
    return chosen
