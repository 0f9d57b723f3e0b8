"""Match the keys of ``bits.layers`` and ``pruning.layers`` with nodes: by place, op or name."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from glob import escape

import onnx_ir as ir

from qtool.errors import KeyPath, RecipeError, suggest
from qtool.graph.queries import WEIGHTED_OPS, is_constant, name_of, readers


def name_pattern(name: str) -> str:
    """Return the key of ``bits.layers`` that matches this node alone."""
    return f"name:{escape(name)}"


def nodes_matching(model: ir.Model, pattern: str, key: KeyPath = ("bits", "layers")) -> set[str]:
    """Return the names of the nodes that a ``bits.layers`` key matches.

    ``first`` are the weighted nodes that an input reaches through no other weighted node, ``last``
    those that reach an output in the same way; ``op:Gemm`` is an op type; ``name:*/head/*`` a name,
    where ``*`` also matches ``/``.

    Args:
        model: the rewritten graph.
        pattern: the key.
        key: where the patterns stand in a recipe.

    Raises:
        RecipeError: the pattern matches nothing (with the closest names).
    """
    graph = model.graph
    if pattern == "first":
        names = _first_weighted(graph.inputs, forward=True)
    elif pattern == "last":
        names = _first_weighted(graph.outputs, forward=False)
    elif pattern.startswith("op:"):
        names = {name_of(n) for n in graph if n.op_type == pattern[3:]}
    else:
        glob = pattern.removeprefix("name:")
        names = {name_of(n) for n in graph if fnmatchcase(name_of(n), glob)}
    if not names:
        ops = pattern.startswith("op:")
        choices = {n.op_type if ops else name_of(n) for n in graph}
        word = pattern.removeprefix("op:").removeprefix("name:")
        raise RecipeError(
            f'the pattern "{pattern}" matches no node of the model'
            f"{suggest(word, choices) or ';'} `qtool check` lists the names",
            key=(*key, pattern),
        )
    return names


def _first_weighted(values: Iterable[ir.Value], forward: bool) -> set[str]:
    """Walk from the graph's inputs, or back from its outputs, to the first weighted nodes."""
    names: set[str] = set()
    seen: set[ir.Node] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        producer = value.producer()
        for node in readers(value) if forward else [producer] if producer is not None else []:
            if node in seen:
                continue
            seen.add(node)
            if node.op_type in WEIGHTED_OPS and any(is_constant(v) for v in node.inputs[:2]):
                names.add(name_of(node))
                continue
            todo.extend(v for v in (node.outputs if forward else node.inputs) if v is not None)
    return names
