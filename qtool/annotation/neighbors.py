"""Queries about the nodes around a candidate: fused sums, positive values, inputs of a Concat."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import onnx_ir as ir

from qtool.graph.queries import clip_limits, is_constant, is_float, name_of, sole_reader
from qtool.targets.target import OpRule


class Candidate(NamedTuple):
    """A node that can compute on codes, its rule, and the last of the nodes fused with it."""

    node: ir.Node
    rule: OpRule
    last: ir.Node


Candidates = Mapping[str, Candidate]
"""Node name -> candidate, in graph order."""

# Ops whose outputs are never negative.
POSITIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp")


def without_fused(node: ir.Node, rule: OpRule, candidates: Candidates) -> OpRule:
    """Remove the operand of an Add that stays float, because its kernel adds the others to it.

    Args:
        node: any node; only an Add has such a rule.
        rule: its rule; ``fused_into`` names the ops whose kernels add.
        candidates: candidates of all nodes in front of it.

    Returns:
        The rule, with the inputs that are read as codes.
    """
    order = {name: k for k, name in enumerate(candidates)} if rule.fused_into else {}
    fused: dict[int, int] = {}  # order of the candidate -> position of its output in the Add
    for position, value in enumerate(node.inputs):
        producer = value.producer() if value is not None else None
        if value is None or producer is None or producer.op_type not in rule.fused_into:
            continue
        name = name_of(producer)
        if name in order and sole_reader(value) is node:
            _, made_by, last = candidates[name]
            if last is producer and made_by.output == "either":
                fused[order[name]] = position
    # The kernel of the last one adds: the other operands are computed before it runs.
    rest = tuple(k for k in range(len(node.inputs)) if not fused or k != fused[max(fused)])
    if not fused or all(is_constant(node.inputs[k]) for k in rest):
        return rule
    return replace(rule, inputs=rest)


def positive_grids(chosen: Candidates, grid_of: Mapping[str, str]) -> set[str]:
    """Return the grids on which no value can be negative, by the ops that write the values.

    Args:
        chosen: the candidates that compute on codes.
        grid_of: value name -> grid id.
    """
    values = {v.name: v for n, _, last in chosen.values() for v in (*n.inputs, *last.outputs) if v}
    cache: dict[str, bool] = {}

    def positive(value: ir.Value | None) -> bool:
        node = value.producer() if value is not None else None
        if value is None or node is None:
            return False
        name = name_of(value)
        if name not in cache:
            rule = chosen[name_of(node)].rule if node.name in chosen else None
            if node.op_type == "Clip":
                low = clip_limits(node)[0]
                cache[name] = low is not None and low >= 0
            elif node.op_type in POSITIVE or rule is None or rule.form == "weighted":
                cache[name] = node.op_type in POSITIVE
            else:  # sums, products, means and copies of positive values are positive
                count = 1 if rule.form == "same_grid" else len(node.inputs)
                operands = [v for v in node.inputs[:count] if v is not None and is_float(v)]
                cache[name] = all(positive(v) for v in operands)
        return cache[name]

    mixed = {grid for name, grid in grid_of.items() if not positive(values.get(name))}
    return set(grid_of.values()) - mixed


def is_free_for_concat(value: ir.Value, chosen: Candidates) -> bool:
    """Return True when only the Concat behind a value reads its codes.

    It then takes the grid of the Concat: values are rounded once, not twice, and the integer Concat
    is a copy.

    Args:
        value: an operand of a Concat.
        chosen: the candidates that compute on codes.
    """
    if sole_reader(value) is None or is_constant(value) or value.is_graph_input():
        return False
    producer = value.producer()
    if producer is None:
        return False
    made_by = chosen.get(name_of(producer))
    if made_by is not None and made_by.rule.form == "same_grid":
        if len(producer.outputs) > 1:
            return False
        return producer.inputs[0] is not None and is_free_for_concat(producer.inputs[0], chosen)
    return True
