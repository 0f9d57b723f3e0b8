"""Divide the weights of each layer by their largest magnitude, and pass the factor on."""

import numpy as np
import onnx_ir as ir

from qtool.graph.channels import FIXED, Channels, Layer
from qtool.graph.edit import add_constant
from qtool.graph.layers import oriented_weight
from qtool.graph.queries import clip_limits
from qtool.rewrites.rewrite import IsInteger
from qtool.rewrites.scaling.equalize import scale_layer


def normalize_weights(model: ir.Model, is_integer: IsInteger) -> int:
    """Divide the weights of each layer by their largest magnitude (N2D2's first step); optional.

    In graph order, with t the factor on a layer's input::

        W <- t W,  s = max|W|,  W /= s,  b /= s,  t of the layers that read it: s

    after which the weights of every layer lie in [-1, 1] and reach an end of it, but for layers
    whose outputs cannot be scaled (those of the network among them), which keep all factors that
    came before. Between layers may be what `equalize` passes, and a Clip [0, h], whose limit
    becomes h / s. Branches of a sum share one s, the largest of them as far as t is known where
    the first is visited: weights of a later branch may exceed 1. The float function stays, and so
    do codes, since grids are scaled along; scales of weights become 1 / 127 at 8 bits.

    Source: N2D2 (CEA-LIST), post-training quantization, "weights normalization" per layer.
    Departure: the network's outputs keep their scale.
    """
    channels = Channels(model.graph)
    _share_factors(channels)
    layers = channels.layers
    scales, seen = np.ones(channels.count), {FIXED}
    for layer in layers:
        numbers = [k for k in np.unique(layer.outputs) if k not in seen]
        seen.update(numbers)
        for number in numbers:
            largest = max(_largest(x, scales) for x in layers if np.isin(number, x.outputs))
            scales[number] = largest if largest > 0 else 1.0
    for node, passed in channels.clips:
        _scale_limit(model.graph, node, float(scales[channels.number(passed)].flat[0]))
    return sum([scale_layer(layer, scales) for layer in layers])


def _share_factors(channels: Channels) -> None:
    """Join the channels of each layer's outputs: one factor for a layer, or none."""
    for layer in channels.layers:
        channels.join(layer.outputs)
    for node, numbers in channels.clips:
        high = clip_limits(node)[1]
        if high is None:  # computed at run time
            channels.fix(numbers)
        else:
            channels.join(numbers)


def _largest(layer: Layer, scales: np.ndarray) -> float:
    """Return the largest |W| of a layer under the factors on its input."""
    magnitudes = np.abs(oriented_weight(layer.node))
    return float((magnitudes * scales[layer.inputs][:, None, :, None]).max(initial=0.0))


def _scale_limit(graph: ir.Graph, node: ir.Node, scale: float) -> None:
    """Divide the upper limit of a Clip; the constant stays for other readers."""
    high = clip_limits(node)[1]
    if scale == 1 or high is None or np.isinf(high):
        return
    limit = np.asarray(high / scale, np.float32)
    value = add_constant(graph, f"{node.name}_limit", limit)
    node.replace_input_with(2, value)
