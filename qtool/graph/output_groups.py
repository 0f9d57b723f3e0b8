"""Find the quantities that an output carries side by side, such as boxes and scores."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, constant, dims, is_constant, name_of

# Ops whose output has the shape of their first computed operand.
ELEMENTWISE = frozenset(
    {
        *("Identity", "Cast", "Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Relu", "Clip"),
        *("Exp", "Log", "Tanh", "Sqrt", "Neg", "Abs", "Add", "Sub", "Mul", "Div", "Pow"),
    }
)

SHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")

# Channels whose factor is this much smaller than the largest were scaled.
SCALED = 4
# Elements of an output whose kind is that of their channel.
AGREEMENT = 0.9

# More parts are no heads, but a list of values that someone stacked.
MAX_GROUPS = 16


@dataclass(frozen=True)
class ChannelGroup:
    """A slice of an output that one operand of a Concat fills, or some channels of a convolution.

    Attributes:
        output: name of the output.
        axis: of the output.
        start, stop: of the slice.
        source: name of the operand, or of the scaled channels.
    """

    output: str
    axis: int
    start: int
    stop: int
    source: str


def channel_groups(model: ir.Model) -> tuple[ChannelGroup, ...]:
    """Return the slices of all outputs that come from Concats near the end of the graph.

    Each Concat is found from the output through ops that leave shapes as they are, Transpose and
    Reshape; of a Concat of Concats (levels of boxes and scores) both axes are sliced. Where
    ``scale_output_channels`` scaled some channels of a convolution and others not, both kinds are
    quantities of their own.

    Args:
        model: with shapes.
    """
    return tuple(
        replace(group, output=name_of(output))
        for output in model.graph.outputs
        for group in _groups(output)
    )


def _groups(output: ir.Value) -> Iterator[ChannelGroup]:
    """Yield the groups of one output; their ``output`` is empty."""
    shape = dims(output)
    value: ir.Value | None = output
    # Axis of ``value`` -> the same axis of the output.
    axes: Mapping[int, int] = {k: k for k in range(len(shape or ()))}
    sliced: set[int] = set()
    behind: list[ir.Node] = []
    while value is not None and axes:
        node = value.producer()
        if node is None:
            return
        factors = _channel_factors(node)
        if factors is not None:
            labels = _output_labels(factors, node, behind[::-1])
            yield from [] if labels is None else _scaled(name_of(value), labels, sliced)
            return
        behind.append(node)
        if node.op_type == "Concat":
            axis = axes.get(int(attribute(node, "axis", 0)) % max(len(dims(value) or ()), 1))
            if axis is not None and axis not in sliced and 1 < len(node.inputs) <= MAX_GROUPS:
                sliced.add(axis)
                yield from _slices(node, axis)
            value = node.inputs[0]
            continue
        value, axes = _before(node, axes)


def _slices(concat: ir.Node, axis: int) -> Iterator[ChannelGroup]:
    """Yield one group for each operand of a Concat; none where a size is unknown."""
    own = int(attribute(concat, "axis", 0))
    sizes = [(dims(value) or ())[own] if dims(value) else None for value in concat.inputs]
    start = 0
    if not all(isinstance(size, int) for size in sizes):
        return
    for value, size in zip(concat.inputs, sizes, strict=True):
        stop = start + int(size or 0)
        if value is not None and stop > start:
            yield ChannelGroup("", axis, start, stop, name_of(value))
        start = stop


def _channel_factors(node: ir.Node) -> np.ndarray | None:
    """Return the factors of a product of a convolution's channels with constants, else None."""
    if node.op_type != "Mul" or node.inputs[0] is None:
        return None
    producer, factors = node.inputs[0].producer(), constant(node.inputs[1])
    if producer is None or producer.op_type != "Conv" or factors is None:
        return None
    channels = factors.ndim > 2 and factors.shape[1] == factors.size > 1
    return factors if channels and factors.min() != factors.max() else None


def _output_labels(
    factors: np.ndarray, node: ir.Node, behind: Sequence[ir.Node]
) -> np.ndarray | None:
    """Return which elements of an output are scaled channels; the batch has the size 1.

    Args:
        factors: of the channels; the largest are not scaled.
        node: the product.
        behind: nodes from the product to the output, in order.
    """
    shape = _sizes(node.outputs[0])
    if shape is None:
        return None
    labels = np.broadcast_to(factors * SCALED <= factors.max(), shape)
    for step in behind:
        out = _sizes(step.outputs[0])
        if step.op_type == "Transpose":
            labels = labels.transpose(attribute(step, "perm"))
        elif step.op_type in SHAPES and out is not None and np.prod(out) == labels.size:
            labels = labels.reshape(out)
        elif step.op_type not in ELEMENTWISE and step.op_type != "Concat":
            return None
    return labels


def _sizes(value: ir.Value) -> list[int] | None:
    """Return the shape of a value, 1 for sizes that are open."""
    shape = dims(value)
    return None if shape is None else [size if isinstance(size, int) else 1 for size in shape]


def _scaled(source: str, labels: np.ndarray, sliced: set[int]) -> Iterator[ChannelGroup]:
    """Yield the runs of equal labels along the one axis that they depend on.

    Few may differ: a channel of one anchor may be scaled, and that of another one not.
    """
    for axis in range(labels.ndim):
        others = tuple(k for k in range(labels.ndim) if k != axis)
        line = labels.mean(axis=others, keepdims=True) >= 1 / 2
        if axis in sliced or np.mean(labels == line) < AGREEMENT:
            continue
        edges = [0, *(np.flatnonzero(np.diff(line.reshape(-1))) + 1).tolist(), line.size]
        if 2 < len(edges) <= MAX_GROUPS + 1:
            for start, stop in itertools.pairwise(edges):
                yield ChannelGroup("", axis, start, stop, source)


def _before(node: ir.Node, axes: Mapping[int, int]) -> tuple[ir.Value | None, Mapping[int, int]]:
    """Return the operand in front of a node, and its axes that the output still has."""
    out = dims(node.outputs[0])
    if node.op_type in ELEMENTWISE:
        computed = [v for v in node.inputs if v is not None and not is_constant(v)]
        same = next((v for v in computed if dims(v) == out), None)
        return same, axes
    value, shape = node.inputs[0] if node.inputs else None, dims(node.inputs[0])
    if shape is None or out is None:
        return None, {}
    if node.op_type == "Transpose":
        order = attribute(node, "perm", tuple(reversed(range(len(shape)))))
        return value, {int(a): axes[k] for k, a in enumerate(order) if k in axes}
    if node.op_type in SHAPES:
        # Axes before or behind which the sizes are the same are the same axes.
        ahead = _equal_sizes(shape, out)
        behind = {len(shape) - 1 - k for k in range(_equal_sizes(shape[::-1], out[::-1]))}
        pairs = {k: k for k in range(ahead)}
        pairs |= {k: k - len(shape) + len(out) for k in behind}
        return value, {k: axes[o] for k, o in pairs.items() if o in axes}
    return None, {}


def _equal_sizes(a: tuple[int | str | None, ...], b: tuple[int | str | None, ...]) -> int:
    """Return how many leading sizes are the same."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y or x is None:
            break
        count += 1
    return count
