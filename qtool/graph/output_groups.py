"""Find the quantities that an output carries side by side, such as boxes and scores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from qtool.graph.queries import attribute, dims, is_constant, name_of

# Ops whose output has the shape of their first computed operand.
ELEMENTWISE = frozenset(
    {
        *("Identity", "Cast", "Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Relu", "Clip"),
        *("Exp", "Log", "Tanh", "Sqrt", "Neg", "Abs", "Add", "Sub", "Mul", "Div", "Pow"),
    }
)

# More parts are no heads, but a list of values that someone stacked.
MAX_GROUPS = 16


@dataclass(frozen=True)
class ChannelGroup:
    """A slice of an output that one operand of a Concat fills.

    Attributes:
        output: name of the output.
        axis: of the output.
        start, stop: of the slice.
        source: name of the operand.
    """

    output: str
    axis: int
    start: int
    stop: int
    source: str


def channel_groups(model: ir.Model) -> tuple[ChannelGroup, ...]:
    """Return the slices of all outputs that come from Concats near the end of the graph.

    Each Concat is found from the output through ops that leave shapes as they are, Transpose and
    Reshape; of a Concat of Concats (levels of boxes and scores) both axes are sliced.

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
    while value is not None and axes:
        node = value.producer()
        if node is None:
            return
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
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
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
