"""Constants that are computed, nodes that do nothing, constants that must not be shared."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as passes

from qtool.graph.edit import add_constant, drop, take_over
from qtool.graph.queries import WEIGHTED_OPS, attribute, constant, is_constant, weight_axis
from qtool.runtime.ort_session import OrtSession

Quantized = Callable[[ir.Node], bool]

# Outputs differ from call to call, or carry a state of their own.
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}
_RANDOM |= {"Bernoulli"}


def fold_constants(model: ir.Model, quantized: Quantized) -> int:
    """Compute once what depends on no input, and store the result as an initializer.

    One ONNX Runtime session computes all of them, so the values are those the runtime would use.
    """
    graph = model.graph
    known: set[ir.Value] = {v for v in graph.initializers.values() if is_constant(v)}
    nodes: set[ir.Node] = set()
    for node in graph:
        bodies = any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        )
        if bodies or node.domain not in ("", "ai.onnx") or not _foldable(node):
            continue
        if all(v is None or v in known for v in node.inputs):
            known.update(node.outputs)
            nodes.add(node)
    wanted = [
        v
        for node in graph
        if node in nodes
        for v in node.outputs
        if any(u not in nodes for u, _ in v.uses())
    ]
    if wanted:
        part = ir.Model(
            ir.convenience.extract(graph, inputs=[], outputs=wanted),
            ir_version=model.ir_version,
        )
        part.graph.opset_imports.update(model.opset_imports)
        with OrtSession(part, level="basic") as session:
            found = session({})
        for value in wanted:
            folded = add_constant(graph, f"{value.name}_folded", found[value.name or ""])
            ir.convenience.replace_all_uses_with(value, folded)
    remove_unused(model)
    return len(nodes)


def _foldable(node: ir.Node) -> bool:
    """True for a node with tensor outputs, the same in every run, none of them the graph's."""
    if any(v.is_graph_output() for v in node.outputs) or node.op_type in _RANDOM:
        return False
    return "Sequence" not in node.op_type and "Optional" not in node.op_type


def remove_identities(model: ir.Model, quantized: Quantized) -> int:
    """Remove Identity, inference-time Dropout, Casts to the same type and Pads of nothing."""
    done = 0
    for node in list(model.graph):
        if not _does_nothing(node):
            continue
        source, out = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if out.is_graph_output():
            producer = source.producer()
            # A graph output keeps its name; an input or constant cannot be renamed into it.
            if producer is None or source.is_graph_output() or len(source.uses()) > 1:
                continue
            take_over(out, source)
        else:
            ir.convenience.replace_all_uses_with(out, source)
        drop(node)
        done += 1
    return done


def _does_nothing(node: ir.Node) -> bool:
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
    return False


def split_shared_constants(model: ir.Model, quantized: Quantized) -> int:
    """Give each weighted node its own bias, and a weight of its own where the axes differ.

    A bias is stored on the grid s_x * s_w of its one reader. Weights read along the same output
    axis by several nodes stay one array (tied weights stay tied).
    """
    done = 0
    for value in list(model.graph.initializers.values()):
        groups: dict[object, list[tuple[ir.Node, int]]] = {}
        for node, index in value.uses():
            groups.setdefault(_role(node, index), []).append((node, index))
        for uses in list(groups.values())[1:]:
            array = constant(value)
            if array is None:
                break
            copy = add_constant(model.graph, f"{value.name}_copy", array)
            for node, index in uses:
                node.replace_input_with(index, copy)
            done += 1
    return done


def _role(node: ir.Node, index: int) -> object:
    if node.op_type in WEIGHTED_OPS and index == 1:
        return ("weight", weight_axis(node))
    if node.op_type in WEIGHTED_OPS and index == 2:
        return ("bias", node)
    return "float"


def remove_unused(model: ir.Model) -> None:
    """Drop nodes and initializers that reach no output."""
    passes.RemoveUnusedNodesPass()(model)
