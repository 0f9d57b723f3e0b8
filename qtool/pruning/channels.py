"""Choose whole channels to remove.

Channels that must go together are found by following them through the graph
(:mod:`qtool.graph.channels`): both branches of a residual sum, a depthwise layer and the layers
around it, a squeeze-excite gate and what it scales.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.channels import FIXED, Channels, Layer
from qtool.graph.layers import oriented_weight
from qtool.graph.queries import constant, dims, macs, name_of, sole_reader


@dataclass(frozen=True, eq=False)
class ChannelSet:
    """Channels that the same layers write and read, so that any of them may be removed.

    Attributes:
        numbers: of its channels, see :class:`Channels`, the least important first.
        is_branch: they alone connect the layers of a branch of a residual sum, which disappears
            without them.
    """

    numbers: np.ndarray
    is_branch: bool


def removable_channels(graph: ir.Graph, fixed: Collection[str] = ()) -> Channels:
    """Follow channels; those that cannot be removed have the number FIXED.

    Args:
        graph: its BatchNorms are folded.
        fixed: names of layers whose outputs stay.
    """
    channels = Channels(graph, elementwise=True)
    for layer in channels.layers:
        groups, inputs = layer.inputs.shape
        if groups > 1 and inputs == 1:  # a depthwise channel goes with the one that it reads
            for read, written in zip(layer.inputs, layer.outputs, strict=True):
                channels.join(np.concatenate([read, written]))
        elif groups > 1:
            channels.fix(layer.inputs)
            channels.fix(layer.outputs)
        if name_of(layer.node) in fixed:
            channels.fix(layer.outputs)
    for node in graph:
        _fix_unsupported(channels, node)
    return channels


def _fix_unsupported(channels: Channels, node: ir.Node) -> None:
    """Fix channels at ops whose constants have one number for each, and that are not changed."""
    read = channels.of(node.inputs[0]) if node.inputs else None
    written = channels.of(node.outputs[0]) if node.outputs else None
    if read is None or written is None or node.op_type not in ("Slice", "PRelu"):
        return
    slope = constant(node.inputs[1]) if node.op_type == "PRelu" else None
    if len(read[0]) != len(written[0]) or (slope is not None and slope.size > 1):
        channels.fix(read[0])


def channel_sets(channels: Channels) -> list[ChannelSet]:
    """Return the sets of channels that can be removed, in the order of their first layer.

    A channel's importance is the mean, over the layers that write or read it, of the squared norm
    of its weights relative to the layer's other channels.

    Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", sec. 3.3 (the norm of a
        group of coupled weights), arXiv:2301.12900.

    Args:
        channels: of :func:`removable_channels`.
    """
    total, count = np.zeros(channels.count), np.zeros(channels.count)
    touching: dict[int, list[tuple[str, str]]] = {}
    layers = channels.layers
    for layer in layers:
        weight = oriented_weight(layer.node)
        for side, numbers, axes in (("out", layer.outputs, (2, 3)), ("in", layer.inputs, (1, 3))):
            energy = np.square(weight).sum(axes).reshape(-1)
            relative = energy / (energy.mean() or 1.0)
            np.add.at(total, numbers.reshape(-1), relative)
            np.add.at(count, numbers.reshape(-1), 1)
            for number in np.unique(numbers):
                touching.setdefault(int(number), []).append((name_of(layer.node), side))
    sets: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, sides in touching.items():
        if number != FIXED and any(side == "out" for _, side in sides):
            sets.setdefault(tuple(sides), []).append(number)
    scores, result = total / np.maximum(count, 1), []
    for members in sets.values():
        chosen = np.array(sorted(members))
        order = np.argsort(scores[chosen], kind="stable")
        result.append(ChannelSet(chosen[order], _is_branch(layers, chosen)))
    return result


def _is_branch(layers: Sequence[Layer], numbers: np.ndarray) -> bool:
    """Return whether layers read these channels alone, and a residual sum reads the layers."""
    reading = [
        x
        for x in layers
        if np.isin(x.inputs, numbers).any() and not np.isin(x.outputs, numbers).any()
    ]
    closing = [np.isin(x.inputs, numbers).all() and branch_end(x.node) is not None for x in reading]
    return bool(closing) and all(closing)


def branch_end(node: ir.Node) -> ir.Node | None:
    """Return the Add of two equal shapes that alone reads a layer's output; else None."""
    add = sole_reader(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    shapes = [dims(value) for value in add.inputs]
    return add if shapes[0] is not None and shapes[0] == shapes[1] else None


def layer_macs(layer: Layer, stays: np.ndarray, multiple: int = 1) -> int:
    """Return the multiply-accumulates of a layer with the channels that stay.

    Args:
        layer: of the whole network.
        stays: by number of channel.
        multiple: channels are counted in full multiples of it.
    """
    outputs, inputs = (
        -(-int(stays[side].sum()) // multiple) * multiple for side in (layer.outputs, layer.inputs)
    )
    if layer.inputs.shape[0] > 1:  # depthwise, or the channels are fixed
        return macs(layer.node) * outputs // layer.outputs.size
    return macs(layer.node) * outputs * inputs // (layer.outputs.size * layer.inputs.size)


def other_macs(model: ir.Model, layers: Sequence[Layer]) -> int:
    """Return the multiply-accumulates of nodes that are no layer with constant weights."""
    names = {name_of(layer.node) for layer in layers}
    return sum(macs(node) for node in model.graph if name_of(node) not in names)
