"""Equalize the weight ranges of consecutive layers, channel by channel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.channels import FIXED, Channels, Layer
from qtool.graph.intervals import intervals
from qtool.graph.layers import layer_weight, oriented_weight, restored
from qtool.graph.queries import clip_limits, constant
from qtool.rewrites.rewrite import IsInteger

# Nagel et al. repeat until the scales no longer change; 40 sweeps are ample.
SWEEPS = 40
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class _Ranges:
    """A layer and the largest magnitudes of its weights, float64 [groups, outputs, inputs]."""

    layer: Layer
    magnitudes: np.ndarray

    def of_outputs(self, scales: np.ndarray) -> np.ndarray:
        """Return the largest |W| of every output channel under the scales, [groups, outputs]."""
        scaled = self.magnitudes * scales[self.layer.inputs][:, None, :]
        return np.asarray(scaled.max(2) / scales[self.layer.outputs])

    def of_inputs(self, scales: np.ndarray) -> np.ndarray:
        """Return the largest |W| of every input channel under the scales, [groups, inputs]."""
        scaled = self.magnitudes / scales[self.layer.outputs][:, :, None]
        return np.asarray(scaled.max(1) * scales[self.layer.inputs])


def equalize(model: ir.Model, is_integer: IsInteger) -> int:
    """Equalize the weight ranges of consecutive layers; optional, for weights scaled per tensor.

    For a channel c that one layer writes and the next one reads, with r1 = max |W1[c, :]| and
    r2 = max |W2[:, c]|::

        s = sqrt(r1 / r2),   W1[c] /= s,   b1[c] /= s,   W2[:, c] *= s

    after which both ranges are sqrt(r1 * r2). All pairs are visited in turn until no scale changes
    by more than 0.1 %; a depthwise layer is the second of one pair and the first of the next, so
    that pointwise, depthwise, pointwise end at the cube root of the product of their three ranges.
    Between the layers may be what commutes with a positive factor per channel: Relu, LeakyRelu,
    PRelu, pooling, zero padding, Reshape, Transpose, Slice, Concat, and Add or Sub where all
    branches can be scaled alike. Of several layers that write or read a channel the largest range
    counts. A channel of zeros keeps its scale. Where both layers have other channels that cannot
    be scaled, ranges are compared relative to the largest of those.

    A Clip [0, h] with a scalar h (ReLU6) commutes only where h is never reached. A channel is
    scaled across it only if interval arithmetic from the weights proves x <= h for every input of
    the network, and by no less than max(x) / h, so that h is not reached afterwards either.

    The metadata of folded BatchNorms stays right: gamma and beta are divided by s, mean and
    variance are those of the layer's output before, which the factors cancel in.

    Source: Nagel et al. 2019, sec. 4.1 and appendix A, arXiv:1906.04721.
    Departure: ReLU6 is not replaced by Relu, since that changes the float function.
    """
    channels = Channels(model.graph)
    least, note = _clip_limits(model, channels)
    ranges = [_Ranges(layer, _magnitudes(layer)) for layer in channels.layers]
    numbers = [layer.outputs for layer in channels.layers] + [r.layer.inputs for r in ranges]
    scales = equalizing_scales(ranges, channels.count, least) if numbers else np.ones(1)
    done = sum([scale_layer(r.layer, scales) for r in ranges])
    if note:
        model.meta["equalize"] = note
    return done


def equalizing_scales(ranges: Sequence[_Ranges], count: int, least: np.ndarray) -> np.ndarray:
    """Return the scale of every channel; the identity for fixed ones.

    Args:
        ranges: of all layers.
        count: of channel numbers.
        least: smallest allowed scale of every channel, [count].
    """
    scales = np.ones(count)
    groups = list(_groups(ranges))
    for _ in range(SWEEPS):
        change = 0.0
        for numbers, writers, readers in groups:
            first, second = np.zeros(count), np.zeros(count)
            for r in writers:
                np.maximum.at(first, r.layer.outputs, r.of_outputs(scales))
            for r in readers:
                np.maximum.at(second, r.layer.inputs, r.of_inputs(scales))
            r1, r2 = first[numbers], second[numbers]
            alive = (r1 > 0) & (r2 > 0)
            step = balancing_step(np.where(alive, r1, 1.0), np.where(alive, r2, 1.0), first, second)
            new = np.where(alive, np.maximum(scales[numbers] * step, least[numbers]), 1.0)
            change = max(change, float(np.abs(new / scales[numbers] - 1).max()))
            scales[numbers] = new
        if change < TOLERANCE:
            break
    return scales


def balancing_step(
    r1: np.ndarray, r2: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return the factors that balance the ranges r1 and r2 of one group's channels.

    Where both layers have channels that cannot be scaled, of ranges R1 and R2, the scale of the
    tensor follows from these, and r1 / R1 = r2 / R2 is best; where one has, its range
    is not exceeded.

    Args:
        r1: ranges of the channels where they are written, [C].
        r2: ranges of the channels where they are read, [C].
        first: ranges of all channel numbers where they are written; 0 where they are not.
        second: the same where they are read.
    """
    fixed1, fixed2 = first[FIXED], second[FIXED]
    step = np.sqrt(r1 / r2)
    if fixed1 > 0 and fixed2 > 0:
        return np.asarray(step * np.sqrt(fixed2 / fixed1))
    if fixed1 > 0:
        return np.maximum(step, r1 / fixed1)
    return np.minimum(step, fixed2 / r2) if fixed2 > 0 else step


def _groups(
    ranges: Sequence[_Ranges],
) -> Sequence[tuple[np.ndarray, list[_Ranges], list[_Ranges]]]:
    """Return channels that are made together, with all layers that write and that read them."""
    groups, seen = [], {FIXED}
    for r in ranges:
        numbers = np.unique([k for k in r.layer.outputs.flat if k not in seen]).astype(np.int64)
        if not numbers.size:
            continue
        seen.update(numbers.tolist())
        writers = [x for x in ranges if np.isin(x.layer.outputs, numbers).any()]
        readers = [x for x in ranges if np.isin(x.layer.inputs, numbers).any()]
        if readers:
            groups.append((numbers, writers, readers))
    return groups


def _magnitudes(layer: Layer) -> np.ndarray:
    return np.asarray(np.abs(oriented_weight(layer.node)).max(3, initial=0.0))


def _clip_limits(model: ir.Model, channels: Channels) -> tuple[np.ndarray, str]:
    """Fix the channels whose Clip may be active; return the least scale of the others, and a note.

    The least scale is counted from before the first Clip that a channel passes.
    """
    bounds = intervals(model.graph) if channels.clips else {}
    limits: list[tuple[np.ndarray, np.ndarray]] = []
    total = inactive = 0
    for node, numbers in channels.clips:
        high = clip_limits(node)[1]
        if high == float("inf"):
            continue
        total += numbers.size
        interval = bounds.get(node.inputs[0]) if node.inputs[0] is not None else None
        if high is None or high <= 0 or interval is None or interval.upper.size != numbers.size:
            channels.fix(numbers)
            continue
        proven = interval.upper <= high
        inactive += int(proven.sum())
        channels.fix(numbers[~proven])
        limits.append((numbers, interval.upper / high))
    least = np.zeros(channels.count)
    for numbers, floor in limits:
        np.maximum.at(least, channels.number(numbers), np.maximum(floor, 0))
    least[FIXED] = 1.0
    note = f"{inactive} of {total} channels in front of a Clip never reach its upper limit and "
    return least, f"{note}can be equalized exactly" if total else ""


def scale_layer(layer: Layer, scales: np.ndarray) -> bool:
    """Scale a layer's weight, bias and metadata; return whether anything changed."""
    node = layer.node
    written, read = scales[layer.outputs], scales[layer.inputs]
    if (written == 1).all() and (read == 1).all():
        return False
    factor = read[:, None, :, None] / written[:, :, None, None]
    weight, out = node.inputs[1], written.reshape(-1)
    array, scaled = layer_weight(node), oriented_weight(node) * factor
    assert weight is not None
    replace_array(weight, restored(node, scaled, array.shape).astype(array.dtype))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shift = constant(bias)
    if bias is not None and shift is not None:
        replace_array(bias, (shift.astype(np.float64) / out).astype(shift.dtype))
    norm = node.meta.get("folded_norm")
    if isinstance(norm, FoldedNorm):
        node.meta["folded_norm"] = replace(norm, gamma=norm.gamma / out, beta=norm.beta / out)
    moments = node.outputs[0].meta.get("batchnorm")
    if moments is not None:
        node.outputs[0].meta["batchnorm"] = tuple(array / out for array in moments)
    return True


def replace_array(value: ir.Value, array: np.ndarray) -> None:
    """Give a constant other numbers of the same shape and type."""
    value.const_value = ir.Tensor(np.asarray(array, order="C"), name=value.name)
