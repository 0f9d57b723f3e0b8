"""Replace an If by the branch that it takes, where constants decide which one that is."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qtool.graph.edit import Names, add_node, replace_value
from qtool.graph.queries import constant, is_constant, name_of, nested
from qtool.loading.onnx_loader import infer_shapes
from qtool.runtime.ort_session import OrtSession


def choose_branches(model: ir.Model, constants: Mapping[str, np.ndarray]) -> list[str]:
    """Replace each If whose condition depends on constants alone by the nodes of one branch.

    Layers in a branch then compute in integers as others do. The graph's inputs stay, also where
    nothing reads them any more.

    Args:
        model: changed in place.
        constants: input name -> what every call feeds it.

    Returns:
        Notes for the report.
    """
    notes: list[str] = []
    while node := _first_decided(model.graph, constants):
        is_taken = bool(_condition(model, node, constants).all())
        key, other = ("then_branch", "else_branch")[:: 1 if is_taken else -1]
        _release(node.attributes[other].as_graph())
        _insert(model.graph, node, node.attributes[key].as_graph())
        notes.append(f"{node.name} (If) takes its {key} in every call, the other one is left out")
    if notes:
        passes.RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    return notes


def _first_decided(graph: ir.Graph, constants: Mapping[str, np.ndarray]) -> ir.Node | None:
    """Return the first If whose condition depends on constants alone."""
    fixed: set[ir.Value | None] = {None, *(v for v in graph.inputs if v.name in constants)}
    fixed.update(v for v in graph.initializers.values() if is_constant(v))
    for node in graph:
        if node.op_type == "If" and fixed.issuperset(node.inputs) and _is_whole(node):
            return node
        if fixed.issuperset(node.inputs) and not any(True for _ in nested(node)):
            fixed.update(node.outputs)
    return None


def _is_whole(node: ir.Node) -> bool:
    """Return whether an If is as ONNX defines it; ONNX Runtime refuses others, and says why."""
    branches = [node.attributes.get(key) for key in ("then_branch", "else_branch")]
    return [v.dtype for v in node.inputs if v is not None] == [ir.DataType.BOOL] and all(
        branch is not None and not branch.as_graph().inputs for branch in branches
    )


def _condition(model: ir.Model, node: ir.Node, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute the condition of an If that depends on constants alone."""
    source = node.inputs[0]
    if source is None:
        raise AssertionError(f"{node.name} has no condition")
    if source.is_graph_input():
        return constants[name_of(source)]
    array = constant(source)
    if array is not None:
        return array
    inputs = [v for v in model.graph.inputs if v.name in constants]
    part = ir.Model(
        ir.convenience.extract(model.graph, inputs=inputs, outputs=[source]),
        ir_version=model.ir_version,
    )
    part.graph.opset_imports.update(model.opset_imports)
    with OrtSession(part, level="basic") as session:
        return session({v.name or "": constants[name_of(v)] for v in part.graph.inputs})[
            name_of(source)
        ]


def _release(branch: ir.Graph) -> None:
    """Let the nodes of a branch that is left out read nothing: no value is used by them."""
    for node in branch.all_nodes():
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _insert(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Put the nodes of a branch in the place of its If, under names that are new to the graph."""
    node.attributes.clear()  # the names in its branches are free
    names, outputs = Names(graph), list(branch.outputs)
    branch.outputs.clear()  # a value belongs to one graph
    for value in list(branch.initializers.values()):
        del branch.initializers[name_of(value)]
        value.name = names.unique(name_of(value))
        graph.register_initializer(value)
    for inner in list(branch):
        branch.remove(inner)
        inner.name = names.unique(name_of(inner))
        for out in inner.outputs:
            out.name = names.unique(out.name) if out.name else out.name
        graph.insert_before(node, inner)
    replaced: set[str | None] = set()
    for old, new in zip(node.outputs, outputs, strict=True):
        if new.producer() is None or new.name in replaced:
            # A weight cannot be renamed into an output, nor one value into two.
            new = add_node(node, "Identity", [new], name=f"{node.name}/{new.name}")
        replace_value(old, new)
        replaced.add(new.name)
    graph.remove(node, safe=True)
