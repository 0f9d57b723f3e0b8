"""Annotation's questions about neighbours: who adds, who shares a grid, what has no sign."""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from qtool.graph.queries import clip_limits, is_constant, is_float, sole_reader
from qtool.targets.target import OpRule

Candidates = Mapping[str, tuple[ir.Node, OpRule, ir.Node]]
"""Node name -> node, its rule, and the last of the nodes fused with it; in graph order."""

# They write nothing negative, whatever they read.
POSITIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp")


def without_fused(node: ir.Node, rule: OpRule, candidates: Candidates) -> OpRule:
    """The rule without the operand that stays float, because its kernel adds the others to it.

    Args:
        node: an Add.
        rule: its rule; ``fused_into`` names the ops whose kernels add.
        candidates: those of all nodes in front of it.
    """
    order = {name: k for k, name in enumerate(candidates)} if rule.fused_into else {}
    found: dict[int, int] = {}
    for position, value in enumerate(node.inputs):
        producer = value.producer() if value is not None else None
        if value is None or producer is None or producer.op_type not in rule.fused_into:
            continue
        name = producer.name or ""
        if name in order and sole_reader(value) is node:
            _, made_by, last = candidates[name]
            if last is producer and made_by.output == "either":
                found[order[name]] = position
    # The last one: when it runs, what it is to add is there.
    rest = tuple(k for k in range(len(node.inputs)) if not found or k != found[max(found)])
    if not found or all(is_constant(node.inputs[k]) for k in rest):
        return rule
    return replace(rule, inputs=rest)


def positive_grids(chosen: Candidates, grid_of: Mapping[str, str]) -> set[str]:
    """Grids of values that cannot be negative, by the ops that make them."""
    values = {v.name: v for n, _, last in chosen.values() for v in (*n.inputs, *last.outputs) if v}
    known: dict[str, bool] = {}

    def positive(value: ir.Value | None) -> bool:
        node = value.producer() if value is not None else None
        if value is None or node is None:
            return False
        name = value.name or ""
        if name not in known:
            rule = chosen[node.name or ""][1] if node.name in chosen else None
            if node.op_type == "Clip":
                low = clip_limits(node)[0]
                known[name] = low is not None and low >= 0
            elif node.op_type in POSITIVE or rule is None or rule.form == "weighted":
                known[name] = node.op_type in POSITIVE
            else:  # sums, products, means and copies of such values are such values
                count = 1 if rule.form == "same_grid" else len(node.inputs)
                read = [v for v in node.inputs[:count] if v is not None and is_float(v)]
                known[name] = all(positive(v) for v in read)
        return known[name]

    mixed = {grid for name, grid in grid_of.items() if not positive(values.get(name))}
    return set(grid_of.values()) - mixed


def private(value: ir.Value, chosen: Candidates) -> bool:
    """True when nothing but the Concat behind it reads this value's codes.

    Then the Concat's grid serves it best: values are rounded once, not twice, and the copy is free.
    """
    if sole_reader(value) is None or is_constant(value) or value.is_graph_input():
        return False
    producer = value.producer()
    if producer is None:
        return False
    made = chosen.get(producer.name or "")
    if made is not None and made[1].form == "same_grid":
        if len(producer.outputs) > 1:
            return False
        return producer.inputs[0] is not None and private(producer.inputs[0], chosen)
    return True
