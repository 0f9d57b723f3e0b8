"""The few edits every rewrite is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.graph.names import Names, add_initializer


def unique(graph: ir.Graph, base: str) -> str:
    """``base``, or ``base_1``, ``base_2`` ... when the graph has a value or node so named."""
    return Names(graph).unique(base)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; its name starts with ``name`` and is unique."""
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
    """Let ``new`` replace ``old`` everywhere, under the old name and as the graph's output."""
    made = old.producer()
    graph = made.graph if made is not None else None
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
    """Remove a node nobody reads any more."""
    if node.graph is None:
        raise AssertionError(f"{node.name} belongs to no graph")
    node.graph.remove(node, safe=True)


def set_attributes(node: ir.Node, **attributes: Any) -> None:
    """Set attributes of a node, replacing those it has."""
    for key, value in attributes.items():
        node.attributes[key] = ir.convenience.convert_attribute(key, value)
