"""Replacement of strided slices of feature maps by pooling."""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.queries import attribute, constant, dims, sole_reader
from qtool.rewrites.rewrite import IsInteger

# Exporters write an open end of a slice as INT32_MAX or INT64_MAX.
OPEN_END = 2**31 - 1


def strided_slice_to_max_pool(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace strided slices such as x[:, :, ::2, ::2] by a MaxPool with kernel size 1.

    The maximum of a window of one element is that element, so the values are the same. MaxPool has
    an integer kernel that keeps the channels-last layout, while Slice copies element by element.
    The pattern occurs in the shortcuts of CIFAR ResNets; a chain of Slices becomes one MaxPool.
    """
    done = 0
    for node in list(model.graph):
        strides = _strides(node)
        if strides is None or not is_integer(node):
            continue
        follower = sole_reader(node.outputs[0])
        if follower is not None and _strides(follower) is not None:
            # The last Slice of a chain is replaced, with the product of all strides.
            continue
        first = node
        chain = [node]
        while (before := _slice_before(first)) is not None:
            strides = [a * b for a, b in zip(strides, _strides(before) or (), strict=True)]
            first = before
            chain.append(before)
        if max(strides) == 1:
            continue
        attributes = {"kernel_shape": [1] * len(strides), "strides": strides}
        shape = dims(node.outputs[0])
        name = f"{node.name}/max_pool"
        pooled = add_node(node, "MaxPool", [first.inputs[0]], attributes, name, shape)
        replace_value(node.outputs[0], pooled)
        for old in chain:
            drop(old)
        done += 1
    return done


def _slice_before(node: ir.Node) -> ir.Node | None:
    """Return the strided Slice whose only reader is this node, else None."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or source is None or _strides(producer) is None:
        return None
    return producer if sole_reader(source) is node else None


def _strides(node: ir.Node) -> list[int] | None:
    """Return the spatial strides of a Slice that covers its axes from 0 to the end, else None."""
    steps = slice_steps(node)
    shape = dims(node.inputs[0]) if node.inputs else None
    if steps is None or shape is None or len(shape) not in (3, 4, 5):
        return None
    if any(axis < 2 and step != 1 for axis, step in steps.items()):
        return None
    return [steps.get(axis, 1) for axis in range(2, len(shape))]


def slice_steps(node: ir.Node) -> dict[int, int] | None:
    """Return the steps of a Slice that covers its axes from 0 to the end, by axis, else None."""
    shape = dims(node.inputs[0]) if node.inputs else None
    if node.op_type != "Slice" or shape is None or attribute(node, "starts") is not None:
        return None
    starts, stops = (constant(v) for v in node.inputs[1:3])
    if starts is None or stops is None:
        return None
    axes, steps = (
        constant(node.inputs[k]) if len(node.inputs) > k and node.inputs[k] is not None else default
        for k, default in ((3, np.arange(len(starts))), (4, np.ones(len(starts), np.int64)))
    )
    if axes is None or steps is None:
        return None
    result = {}
    for start, end, raw, step in zip(starts, stops, axes, steps, strict=True):
        axis = int(raw) % len(shape)
        size = shape[axis]
        whole = end >= OPEN_END or (isinstance(size, int) and end >= size)
        if start != 0 or step < 1 or not whole:
            return None
        result[axis] = int(step)
    return result
