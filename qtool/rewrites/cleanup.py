"""Constant folding, removal of no-op nodes and unsharing of constants."""

import onnx_ir as ir
import onnx_ir.passes.common as passes

from qtool.graph.edit import add_constant, drop, replace_value
from qtool.graph.queries import (
    RANDOM_OPS,
    WEIGHTED_OPS,
    attribute,
    clip_limits,
    constant,
    is_constant,
    weight_axis,
)
from qtool.rewrites.rewrite import IsInteger
from qtool.rewrites.strided_slice import slice_steps
from qtool.runtime.ort_session import OrtSession

# Ops that write numbers of their first input alone, and Pad those that it fills with.
_MOVES = ("MaxPool", "Pad", "Slice", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


def fold_constants(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace nodes that depend on no graph input by initializers with their results.

    All of them are computed in one ONNX Runtime session, so the values are the same as in a run of
    the unfolded graph.
    """
    graph = model.graph
    constants: set[ir.Value] = {v for v in graph.initializers.values() if is_constant(v)}
    nodes: set[ir.Node] = set()
    for node in graph:
        bodies = any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        )
        if bodies or node.domain not in ("", "ai.onnx") or not _foldable(node):
            continue
        if all(v is None or v in constants for v in node.inputs):
            constants.update(node.outputs)
            nodes.add(node)
    # Only values that remaining nodes read are computed; those between folded nodes vanish.
    outputs = [
        v
        for node in graph
        if node in nodes
        for v in node.outputs
        if any(u not in nodes for u, _ in v.uses())
    ]
    if outputs:
        part = ir.Model(
            ir.convenience.extract(graph, inputs=[], outputs=outputs),
            ir_version=model.ir_version,
        )
        part.graph.opset_imports.update(model.opset_imports)
        # Level "basic" includes constant folding, which is all that this graph needs.
        with OrtSession(part, level="basic") as session:
            arrays = session({})
        for value in outputs:
            folded = add_constant(graph, f"{value.name}_folded", arrays[value.name or ""])
            ir.convenience.replace_all_uses_with(value, folded)
    remove_unused(model)
    return len(nodes)


def _foldable(node: ir.Node) -> bool:
    """Return whether a node is deterministic, makes tensors only, and none is a graph output."""
    if any(v.is_graph_output() for v in node.outputs) or node.op_type in RANDOM_OPS:
        return False
    return "Sequence" not in node.op_type and "Optional" not in node.op_type


def remove_identities(model: ir.Model, is_integer: IsInteger) -> int:
    """Remove Identity, inference Dropout, same-type Cast, empty Pad, whole Slice, idle Relu."""
    done = 0
    for node in list(model.graph):
        if not _is_identity(node):
            continue
        source, out = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if out.is_graph_output():
            producer = source.producer()
            # A graph output keeps its name; an input or constant cannot be renamed into it.
            if producer is None or source.is_graph_output() or len(source.uses()) > 1:
                continue
            replace_value(out, source)
        else:
            ir.convenience.replace_all_uses_with(out, source)
        drop(node)
        done += 1
    return done


def _is_identity(node: ir.Node) -> bool:
    """Return whether the first output of a node always equals its first input."""
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        unread = all(not o.uses() and not o.is_graph_output() for o in node.outputs[1:])
        return unread and (training is None or not training.any()) and len(node.inputs) <= 3
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype == attribute(node, "to")
    if node.op_type == "Pad":
        pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return pads is not None and not pads.any()
    if node.op_type in ("Relu", "Clip"):
        (low, high), (lower, upper) = clip_limits(node), _limits(node.inputs[0])
        return low is not None and high is not None and low <= lower and upper <= high
    steps = slice_steps(node)
    return steps is not None and all(step == 1 for step in steps.values())


def _limits(value: ir.Value | None) -> tuple[float, float]:
    """Return limits of a value that follow from the last Relu or Clip before it."""
    node = None if value is None else value.producer()
    low, high = float("-inf"), float("inf")
    if node is None:
        return low, high
    if node.op_type in ("Relu", "Clip"):
        lower, upper = clip_limits(node)
        high = high if upper is None else upper
        return min(low if lower is None else lower, high), high  # the upper limit wins
    if node.op_type not in _MOVES:
        return low, high
    lower, upper = _limits(node.inputs[0])
    if node.op_type != "Pad":
        return lower, upper
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(fill)
    if fill is not None and array is None:
        return low, high
    number = 0.0 if array is None else float(array.reshape(()))
    return min(lower, number), max(upper, number)


def split_shared_constants(model: ir.Model, is_integer: IsInteger) -> int:
    """Copy constants that several nodes share but that need different quantization parameters.

    Every weighted node gets its own bias, because a bias is quantized with the scale s_x * s_w of
    its reader. A weight is copied only where its readers use different output axes, or where a
    float layer or a subgraph reads it too, which steps that change weights must leave alone;
    weights read along the same axis stay one array (tied weights stay tied).
    """
    done = 0
    for value in list(model.graph.initializers.values()):
        groups: dict[object, list[tuple[ir.Node, int]]] = {}
        for node, index in value.uses():
            integer = node.graph is model.graph and is_integer(node)
            key = _quantization_key(node, index) if integer else "float"
            groups.setdefault(key, []).append((node, index))
        # The first group keeps the original initializer and its name.
        for uses in list(groups.values())[1:]:
            array = constant(value)
            if array is None:
                break
            copy = add_constant(model.graph, f"{value.name}_copy", array)
            for node, index in uses:
                node.replace_input_with(index, copy)
            done += 1
    return done


def _quantization_key(node: ir.Node, index: int) -> object:
    """Return a key that is equal for uses of a constant that may share quantization parameters."""
    if node.op_type in WEIGHTED_OPS and index == 1:
        return ("weight", weight_axis(node))
    if node.op_type in WEIGHTED_OPS and index == 2:
        return ("bias", node)
    return "float"


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that no graph output depends on."""
    passes.RemoveUnusedNodesPass()(model)
