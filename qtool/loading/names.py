"""Unique names of nodes and values, also in the bodies of control flow."""

import onnx_ir as ir

from qtool.graph.edit import Names
from qtool.graph.queries import name_of


def assign_node_names(model: ir.Model) -> None:
    """Give every node of every graph a unique name; existing unique names stay."""
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            base = node.name or f"{node.op_type}_{next(o.name for o in node.outputs)}"
            name, k = base, 1
            while name in taken:
                name, k = f"{base}_{k}", k + 1
            node.name = name
            taken.add(name)
        seen.add(node.name)


def rename_repeated_values(model: ir.Model) -> None:
    """Give values in bodies that have the name of a value elsewhere another one, in place.

    ONNX asks for unique names, ONNX Runtime does not: the nearest value counts. Shape inference
    takes the other one, and then infers nothing behind the body.
    """
    names = Names(model.graph)
    seen = {name_of(value) for value in _values(model.graph)}
    for body in model.graph.subgraphs():
        for value in _values(body):
            if value.name in seen:
                value.name = names.unique(name_of(value))
            seen.add(name_of(value))


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Return the values that a graph itself defines and that have names."""
    values = (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs))
    return [value for value in dict.fromkeys(values) if value.name]
