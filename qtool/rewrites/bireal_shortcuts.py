"""A shortcut of 8 bits around every layer that reads 1 bit, for training."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.original import store_original
from qtool.graph.queries import clip_limits, dims, has_one_use, is_constant, readers
from qtool.rewrites.rewrite import IsInteger, Samples

# Ops through which a shortcut passes from one block to the next.
MOVES = ("MaxPool", "Pad", "Slice", "Transpose", "Reshape")


@dataclass(frozen=True, eq=False)
class _Block:
    """A residual sum behind convolutions that read 1 bit.

    Attributes:
        total: the Add.
        shortcut: position of the shortcut among its operands.
        inner: outputs of the convolutions but the last, of the shortcut's shape, first to last.
    """

    total: ir.Node
    shortcut: int
    inner: tuple[ir.Value, ...]


def bireal_shortcuts(model: ir.Model, is_integer: IsInteger, samples: Samples) -> int:
    """Add shortcuts around all layers of 1-bit activations in residual blocks; changes the network.

    In a block out = relu(conv2(relu(conv1(x))) + s(x)) whose convolutions read 1 bit, and whose
    conv1 writes the shape of the shortcut s(x)::

        h = conv1(relu(x)) + s(x),   out = conv2(relu(h)) + h

    The Relu stands in front of the layers alone, so that the sums pass from block to block with
    their signs and 8 bits; with the 1-bit grid {0, s} it is the sign of x - s / 2. The biases of
    the convolutions (or their BatchNorms) shift every sum channel by channel: that is the learned
    threshold of RSign, and the shifts of RPReLU.

    This is the one rewrite that changes the float function. It is for training: the network as it
    was is stored as the teacher.

    Source: Liu et al. 2018, "Bi-Real Net", sec. 3.2, arXiv:1808.00278; He et al. 2016, "Identity
        Mappings in Deep Residual Networks", fig. 4e, arXiv:1603.05027; Liu et al. 2020, "ReActNet",
        sec. 4.2, arXiv:2003.03488.

    Args:
        model: changed in place.
        is_integer: returns whether a node may compute on integers.
        samples: only the widths are used.

    Returns:
        The number of added shortcuts.
    """

    def is_binary(node: ir.Node | None) -> bool:
        if node is None or node.op_type != "Conv" or not is_integer(node):
            return False
        return samples.widths(node).activations == 1

    blocks = [block for node in model.graph if (block := _block(node, is_binary)) is not None]
    if not blocks:
        return 0
    store_original(model)
    for block in blocks:
        _connect(block)
    model.graph.sort()
    return sum(len(block.inner) for block in blocks)


def _block(total: ir.Node, is_binary: Callable[[ir.Node | None], bool]) -> _Block | None:
    """Return the block that ends in a sum; None where no inner layer can get a shortcut.

    Args:
        total: any node.
        is_binary: returns whether a node is a convolution that reads 1 bit.
    """
    if total.op_type != "Add" or any(is_constant(v) for v in total.inputs):
        return None
    for branch in (0, 1):
        last, shortcut = total.inputs[branch], total.inputs[1 - branch]
        shape = _sample_shape(shortcut)
        if last is None or shape is None or not _writes(last, is_binary):
            continue
        inner: list[ir.Value] = []
        value = _input_of(last)
        while value is not None and _sample_shape(value) == shape and _writes(value, is_binary):
            inner.insert(0, value)
            value = _input_of(value)
        if inner:
            return _Block(total, 1 - branch, tuple(inner))
    return None


def _sample_shape(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """Return the shape of a value without the batch, whose size has several names in a graph."""
    shape = dims(value)
    return None if shape is None else shape[1:]


def _writes(value: ir.Value, is_binary: Callable[[ir.Node | None], bool]) -> bool:
    """Return whether a convolution that reads 1 bit writes a value, which one node reads."""
    return is_binary(value.producer()) and has_one_use(value)


def _input_of(output: ir.Value) -> ir.Value | None:
    """Return what the convolution that writes ``output`` reads, in front of a Relu of its own."""
    conv = output.producer()
    value = conv.inputs[0] if conv is not None else None
    relu = value.producer() if value is not None else None
    if relu is not None and value is not None and _is_relu(relu) and has_one_use(value):
        return relu.inputs[0]
    return value


def _is_relu(node: ir.Node) -> bool:
    """Return whether a node is a Relu, with or without an upper limit."""
    return node.op_type == "Relu" or (node.op_type == "Clip" and clip_limits(node)[0] == 0)


def _connect(block: _Block) -> None:
    """Let the shortcut start in front of the Relu, and pass it along the inner layers."""
    reader, position = block.total, block.shortcut
    while (source := _source(reader, position)) is not None and source.op_type in MOVES:
        if not has_one_use(source.outputs[0]):
            break
        reader, position = source, 0
    if source is not None and _is_relu(source) and _is_sum(source.inputs[0]):
        reader.replace_input_with(position, source.inputs[0])
        # Others than the layer may read values at the limit of a Clip.
        if source.op_type == "Relu" or has_one_use(source.outputs[0]):
            _to_leaky_relu(source)
    shortcut = block.total.inputs[block.shortcut]
    for value in block.inner:
        layer = readers(value)[0]
        shortcut = add_node(
            layer, "Add", [value, shortcut], name=f"{value.name}/sum", shape=dims(value)
        )
        layer.replace_input_with(0, shortcut)
        if _is_relu(layer):
            _to_leaky_relu(layer)
    block.total.replace_input_with(block.shortcut, shortcut)


def _source(reader: ir.Node, position: int) -> ir.Node | None:
    """Return the node that computes an input of another."""
    value = reader.inputs[position]
    return value.producer() if value is not None else None


def _is_sum(value: ir.Value | None) -> bool:
    """Return whether an Add writes a value."""
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Add"


def _to_leaky_relu(relu: ir.Node) -> None:
    """Replace a Relu by a LeakyRelu of slope 0, which has an integer kernel of its own."""
    out = add_node(relu, "LeakyRelu", [relu.inputs[0]], {"alpha": 0.0}, f"{relu.name}/separate")
    replace_value(relu.outputs[0], out)
    drop(relu)
