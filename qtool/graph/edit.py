"""Edit a graph: new names, initializers and nodes; replaced values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Names:
    """The names that a graph and its bodies use, and a source of new ones.

    Names are collected once, at construction; names added elsewhere later are not seen.
    """

    def __init__(self, graph: ir.Graph) -> None:
        """Collect the names.

        Args:
            graph: the graph to edit. Names in the bodies of its control flow count too: a body
                reads values of the outer graph, which an equal name in the body would hide.
        """
        graphs = [graph, *graph.subgraphs()]
        self._used: set[str | None] = {
            v.name for g in graphs for v in (*g.inputs, *g.initializers.values())
        }
        for node in graph.all_nodes():
            self._used.update((node.name, *(v.name for v in node.outputs)))

    def unique(self, base: str) -> str:
        """Return ``base``, or ``base_1``, ``base_2`` ... when that is in use, and reserve it."""
        name, k = base, 0
        while name in self._used:
            k += 1
            name = f"{base}_{k}"
        self._used.add(name)
        return name


def add_initializer(graph: ir.Graph, name: str, data: np.ndarray | ir.Tensor) -> ir.Value:
    """Register a new initializer and return it.

    Args:
        graph: the graph to add to; it has no value of that name yet.
        name: name of the value and of its tensor.
        data: array of any shape; an ``ir.Tensor`` where numpy lacks the type (int4, int2).
    """
    tensor = data if isinstance(data, ir.Tensor) else ir.Tensor(np.asarray(data, order="C"))
    tensor.name = name
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def unique(graph: ir.Graph, base: str) -> str:
    """Return ``base``, or ``base_1``, ``base_2`` ... when the graph uses that name."""
    return Names(graph).unique(base)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer under ``name``, or a unique name that starts with it; return it."""
    return add_initializer(graph, unique(graph, name), array)


def add_node(
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    name: str = "",
    shape: Sequence[int | str | None] | None = None,
) -> ir.Value:
    """Insert a one-output node in front of ``before``; return its output, named after the node."""
    graph = before.graph
    if graph is None:
        raise AssertionError(f"{before.name} belongs to no graph")
    name = unique(graph, name or f"{before.name}_{op}")
    attrs = [ir.convenience.convert_attribute(k, v) for k, v in (attributes or {}).items()]
    node = ir.Node("", op, inputs, attrs, name=name)
    out = node.outputs[0]
    out.name = unique(graph, f"{name}_output")
    source = next(v for v in inputs if v is not None)
    out.type = source.type
    out.shape = ir.Shape(shape) if shape is not None else None
    graph.insert_before(before, node)
    return out


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Replace ``old`` by ``new`` everywhere, under the old name and as the graph's output."""
    producer = old.producer()
    graph = producer.graph if producer is not None else None
    name = old.name
    if new.producer() is not None and new.shape is None:
        new.shape = old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if graph is not None and new.producer() is not None:
        old.name = f"{name}_replaced"
        new.name = name
        if new.type is None:
            new.type = old.type


def drop(node: ir.Node) -> None:
    """Remove a node whose outputs have no readers."""
    if node.graph is None:
        raise AssertionError(f"{node.name} belongs to no graph")
    node.graph.remove(node, safe=True)


def set_attributes(node: ir.Node, **attributes: Any) -> None:
    """Set attributes of a node, replacing those it has."""
    for key, value in attributes.items():
        node.attributes[key] = ir.convenience.convert_attribute(key, value)
