"""The ops that a placement leaves float before anything is measured."""

from collections.abc import Iterable
from typing import Literal

import onnx_ir as ir

from qtool.graph.queries import name_of
from qtool.targets.target import OpRule, Target

Placement = Literal["auto", "all", "conservative"]

CONSERVATIVE = "placement: conservative leaves all but layers with weights in float"


def placement_reasons(
    nodes: Iterable[ir.Node], target: Target, placement: Placement
) -> dict[str, str]:
    """Map each node that a placement leaves float to the reason.

    Ops that only move codes stay with the layers around them: they lose nothing.

    Args:
        nodes: of the graph.
        target: names the kernels that gain no time.
        placement: ``auto`` leaves out kernels that gain no time, ``conservative`` all but those of
            layers with weights, ``all`` none.
    """
    if placement == "all":
        return {}
    slow = f"{target.name}'s integer kernel takes as long as the float op"
    reasons = {}
    for node in nodes:
        rule = target.ops.get(node.op_type)
        if rule is None or not computes_without_weights(rule):
            continue
        if placement == "conservative":
            reasons[name_of(node)] = CONSERVATIVE
        elif node.op_type in target.no_gain:
            reasons[name_of(node)] = slow
    return reasons


def computes_without_weights(rule: OpRule) -> bool:
    """Return True for a rule of an op that computes new codes but has no weights."""
    return rule.form in ("elementwise", "concat")
