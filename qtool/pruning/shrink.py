"""Remove channels from a graph: smaller weights, and constants that count channels."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.channels import Channels, Layer
from qtool.graph.edit import add_constant, drop, set_attributes
from qtool.graph.layers import layer_weight, oriented, restored
from qtool.graph.queries import constant, dims, name_of
from qtool.pruning.channels import branch_end


@dataclass(frozen=True, eq=False)
class _Passing:
    """A node that passes channels on, and those of its input and output that stay.

    Attributes:
        node: of the graph.
        read: True for each channel of the input that stays.
        written: the same of the output.
        read_axis, written_axis: that the channels lie along.
    """

    node: ir.Node
    read: np.ndarray
    written: np.ndarray
    read_axis: int
    written_axis: int


def remove_channels(model: ir.Model, channels: Channels, stays: np.ndarray) -> None:
    """Make layers smaller, in place.

    Args:
        model: BatchNorms that layers remember become smaller with the layers.
        channels: of :func:`qtool.pruning.channels.removable_channels`.
        stays: by number of channel.
    """
    passing = []
    for node in model.graph:
        read = channels.of(node.inputs[0]) if node.inputs else None
        written = channels.of(node.outputs[0]) if node.outputs else None
        if node.op_type in _ADJUST and read is not None and written is not None:
            passing.append(_Passing(node, stays[read[0]], stays[written[0]], read[1], written[1]))
    layers = channels.layers
    for layer in layers:
        if not stays[layer.inputs].any():
            _drop_branch(model.graph, layer.node)
    for layer in layers:
        if layer.node.graph is not None:  # else it was part of a branch
            _shrink_layer(model.graph, layer, stays)
    for each in (each for each in passing if each.node.graph is not None):
        _ADJUST[each.node.op_type](model.graph, each)
    for value in (value for node in model.graph for value in node.outputs):
        followed, shape = channels.of(value), dims(value)
        if followed is not None and shape is not None:
            numbers, axis = followed
            sizes = [*shape[:axis], int(stays[numbers].sum()), *shape[axis + 1 :]]
            value.shape = ir.Shape(sizes)


def _drop_branch(graph: ir.Graph, last: ir.Node) -> None:
    """Remove a branch of a residual sum whose last layer reads nothing any more."""
    add = branch_end(last)
    if add is None:  # a depthwise layer within the branch
        return
    other = next(v for v in add.inputs if v is not last.outputs[0])
    if other is None:
        raise AssertionError(f"{add.name} has one operand")
    ir.convenience.replace_all_uses_with(add.outputs[0], other, replace_graph_outputs=True)
    _drop_unread(add)


def _drop_unread(node: ir.Node) -> None:
    """Remove a node that nothing reads, and those before it that nothing reads then."""
    sources = {v.producer() for v in node.inputs if v is not None}
    drop(node)
    for source in sources:
        if source is None or source.graph is None:  # of two paths to a node, the first drops it
            continue
        if not any(v.uses() or v.is_graph_output() for v in source.outputs):
            _drop_unread(source)


def _shrink_layer(graph: ir.Graph, layer: Layer, stays: np.ndarray) -> None:
    """Select the rows and columns of a layer's weight, and what belongs to its outputs."""
    node, weight = layer.node, layer_weight(layer.node)
    outputs, inputs = stays[layer.outputs], stays[layer.inputs]
    if outputs.all() and inputs.all():
        return
    array = oriented(node, weight)
    groups = outputs.any(1)
    if len(groups) == 1:
        array = array[:, outputs[0]][:, :, inputs[0]]
    else:  # depthwise: a group goes as a whole
        array = array[groups]
        set_attributes(node, group=int(groups.sum()))
    _replace(graph, node, 1, _in_form(node, array, weight))
    rows = outputs.reshape(-1)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and bias.size == rows.size:
        _replace(graph, node, 2, bias.reshape(-1)[rows])
    norm: FoldedNorm | None = node.meta.get("folded_norm")
    if norm is not None:
        node.meta["folded_norm"] = replace(
            norm,
            gamma=norm.gamma[rows],
            beta=norm.beta[rows],
            mean=norm.mean[rows],
            var=norm.var[rows],
            bias=norm.bias[rows],
        )
    moments = node.outputs[0].meta.get("batchnorm")
    if moments is not None:
        node.outputs[0].meta["batchnorm"] = tuple(array[rows] for array in moments)


def _in_form(node: ir.Node, array: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return [groups, outputs, inputs, kernel] in the form of the layer's weight."""
    groups, outputs, inputs, _ = array.shape
    turned = node.op_type == "ConvTranspose"
    rows = (groups * inputs, outputs) if turned else (groups * outputs, inputs)
    return restored(node, array, (*rows, *weight.shape[2:]))


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Put a new initializer in place of a constant input."""
    old = node.inputs[index]
    node.replace_input_with(index, add_constant(graph, name_of(old) if old else "", array))


def _reshape(graph: ir.Graph, passing: _Passing) -> None:
    """Set the number of channels in the shape that a Reshape states."""
    shape = constant(passing.node.inputs[1])
    if shape is not None and shape[passing.written_axis] > 0:
        shape = shape.copy()
        shape[passing.written_axis] = passing.written.sum()
        _replace(graph, passing.node, 1, shape)


def _resize(graph: ir.Graph, passing: _Passing) -> None:
    """Set the number of channels in the sizes that a Resize states."""
    sizes = constant(passing.node.inputs[3]) if len(passing.node.inputs) > 3 else None
    if sizes is not None and sizes.size:
        sizes = sizes.copy()
        sizes[passing.written_axis] = passing.written.sum()
        _replace(graph, passing.node, 3, sizes)


def _pad(graph: ir.Graph, passing: _Passing) -> None:
    """Pad as many channels before and after as stay of those that were padded."""
    pads, axis = constant(passing.node.inputs[1]), passing.read_axis
    if pads is None:
        return
    pads = pads.copy().reshape(2, -1)
    before = int(pads[0, axis])
    after = len(passing.written) - before - len(passing.read)
    pads[0, axis] = passing.written[:before].sum()
    pads[1, axis] = passing.written[len(passing.written) - after :].sum()
    _replace(graph, passing.node, 1, pads.reshape(-1))


_ADJUST: dict[str, Callable[[ir.Graph, _Passing], None]] = {
    "Reshape": _reshape,
    "Resize": _resize,
    "Pad": _pad,
}
