"""The words of ``bits.layers``: first, last, op types and names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import onnx_ir as ir

from qtool.errors import RecipeError, suggest
from qtool.graph.queries import WEIGHTED_OPS, is_constant, readers


def nodes_matching(model: ir.Model, pattern: str) -> set[str]:
    """Names of nodes a ``bits.layers`` key stands for.

    ``first`` are the weighted nodes reached from an input through no other weighted node, ``last``
    those that reach an output so; ``op:Gemm`` is an op type; ``name:*/head/*`` a name, where ``*``
    also matches ``/``.

    Raises:
        RecipeError: the pattern matches nothing (with the closest names).
    """
    graph = model.graph
    if pattern == "first":
        found = _edge(graph.inputs, forward=True)
    elif pattern == "last":
        found = _edge(graph.outputs, forward=False)
    elif pattern.startswith("op:"):
        found = {n.name or "" for n in graph if n.op_type == pattern[3:]}
    else:
        name = pattern.removeprefix("name:")
        found = {n.name or "" for n in graph if fnmatchcase(n.name or "", name)}
    if not found:
        ops = pattern.startswith("op:")
        known = {n.op_type if ops else n.name or "" for n in graph}
        word = pattern.removeprefix("op:").removeprefix("name:")
        raise RecipeError(
            f'bits.layers: the pattern "{pattern}" matches no node of the model'
            f"{suggest(word, known) or ';'} `qtool check` lists the names"
        )
    return found


def _edge(values: Iterable[ir.Value], forward: bool) -> set[str]:
    """Weighted nodes met first when walking from the graph's inputs, or back from its outputs."""
    found: set[str] = set()
    seen: set[ir.Node] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        made = value.producer()
        for node in readers(value) if forward else [made] if made is not None else []:
            if node in seen:
                continue
            seen.add(node)
            if node.op_type in WEIGHTED_OPS and any(is_constant(v) for v in node.inputs[:2]):
                found.add(node.name or "")
                continue
            todo.extend(v for v in (node.outputs if forward else node.inputs) if v is not None)
    return found
