"""Annotate a graph: apply a target's rules to choose the values that are quantized.

Three passes over the nodes. Forward: a value is *available* when the node that computes it can
write codes. Backward: a value is *required* when a node reads it as codes. An op in between (Add,
Concat, MaxPool, Reshape ...) computes on codes when its inputs are available and its output is
required; otherwise it would only add conversions. The third pass assigns grids; values between
which codes move unchanged share one.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qtool.annotation.dynamic import add_dynamic
from qtool.annotation.float_patterns import pattern_reasons
from qtool.annotation.neighbors import Candidate, is_free_for_concat, positive_grids, without_fused
from qtool.annotation.rules import bias_of, find_rule, is_absorbed, is_code_output
from qtool.annotation.weight_only import add_weight_only
from qtool.graph.queries import dims, is_constant, is_float, name_of, sole_reader, weight_axis
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import PerChannel, PerTensor, QuantSpec
from qtool.targets.target import OpRule, Target


@dataclass
class _Draft:
    """State of the passes; ``find`` and ``join`` are a union-find over values that share a grid."""

    target: Target
    bits: Bits
    candidates: dict[str, Candidate] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    parent: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        """Return the grid id of a value, which gets a grid if it has none."""
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        """Put value ``b``, and all values on its grid, on the grid of ``a``."""
        self.parent[self.find(b)] = self.find(a)


def annotate(
    model: ir.Model, target: Target, bits: Bits, islands: Mapping[str, str] | None = None
) -> QuantPlan:
    """Make the plan: sites, shared grids as QuantSpecs, and the reasons of all float nodes.

    Args:
        model: the rewritten graph, with names and shapes.
        target: the ops that its runtime computes on codes.
        bits: the requested widths.
        islands: nodes that stay float though they have a rule, by name, with the reason.

    Returns:
        The plan, without scales and codes.
    """
    draft = _Draft(target, bits)
    nodes = list(model.graph)
    matched = {**(islands or {}), **pattern_reasons(nodes, target.float_patterns)}
    _find_candidates(nodes, draft, matched)
    available = _available_values(model, nodes, draft)
    required = _required_values(nodes, draft, available)
    chosen = _choose(draft, available, required)
    # In graph order: equal plans must give equal files.
    reasons = {name: draft.reasons[name] for n in nodes if (name := name_of(n)) in draft.reasons}
    plan = replace(_assign_grids(draft, chosen, required), float_nodes=reasons)
    return add_dynamic(nodes, target, bits, add_weight_only(nodes, target, bits, plan))


def _find_candidates(nodes: list[ir.Node], draft: _Draft, matched: Mapping[str, str]) -> None:
    """Fill ``candidates`` with nodes that have a rule, and ``reasons`` for the others.

    Args:
        nodes: of the main graph, in order.
        draft: to fill.
        matched: nodes that stay float though they have a rule, by name, with the reason.
    """
    fused: set[str] = set()
    for node in nodes:
        name = name_of(node)
        if name in fused or not any(is_float(v) for v in (*node.inputs, *node.outputs)):
            continue
        if node.op_type in ("Shape", "Size"):
            continue  # they read only the shape of their input
        rule, reason = find_rule(node, draft.target, draft.bits)
        if rule is None or name in matched:
            draft.reasons[name] = reason or matched[name]
            continue
        last = node
        follower = sole_reader(node.outputs[0]) if len(node.outputs) == 1 else None
        if follower is not None and is_absorbed(follower, rule, draft.bits):
            last = follower
            fused.add(name_of(follower))
        rule = without_fused(node, rule, draft.candidates)
        draft.candidates[name] = Candidate(node, rule, last)


def _operands(node: ir.Node, rule: OpRule) -> list[ir.Value]:
    """Return the float operands that a rule reads as codes."""
    operands = node.inputs if not rule.inputs else [node.inputs[i] for i in rule.inputs]
    if rule.form == "weighted":
        # A custom op in front may leave the type unknown; float weights need a float input.
        return [v for v in operands if v is not None]
    # A value of unknown type is an operand too: it is never available, so the op stays float.
    return [v for v in operands if v is not None and (is_float(v) or v.dtype is None)]


def _available_values(model: ir.Model, nodes: Iterable[ir.Node], draft: _Draft) -> set[ir.Value]:
    """Return the values that can be codes: float32 inputs, initializers, outputs of candidates."""
    available = {v for v in model.graph.inputs if v.dtype == ir.DataType.FLOAT}
    available.update(v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    for node in nodes:
        if node.name not in draft.candidates:
            continue
        _, rule, last = draft.candidates[node.name]
        operands = _operands(node, rule)
        computed = any(not is_constant(v) for v in operands)
        if rule.form == "weighted" or (computed and available.issuperset(operands)):
            available.update(filter(is_code_output, last.outputs))
    return available


def _required_values(
    nodes: list[ir.Node], draft: _Draft, available: set[ir.Value]
) -> set[ir.Value]:
    """Return the values that a weighted op reads as codes, directly or through other candidates."""
    required = {v for v in available if v.is_graph_output()} if draft.bits.code_outputs else set()
    for node in reversed(nodes):
        if node.name not in draft.candidates:
            continue
        _, rule, last = draft.candidates[node.name]
        operands = _operands(node, rule)
        if rule.form == "weighted" or (
            available.issuperset(operands)
            and (required.intersection(last.outputs) or _is_worth_converting(node, rule))
        ):
            required.update(operands)
    return required


def _choose(
    draft: _Draft, available: set[ir.Value], required: set[ir.Value]
) -> dict[str, Candidate]:
    """Select the candidates that compute on codes, and record the reasons of the others."""
    chosen = {}
    for name, (node, rule, last) in draft.candidates.items():
        is_required = not required.isdisjoint(last.outputs)
        fits = available.issuperset(_operands(node, rule))
        worth = rule.form == "weighted" or (fits and _is_worth_converting(node, rule))
        if not is_required and rule.output == "either" and worth:
            # It writes floats: there is no output grid that could include an activation.
            if last is not node:
                draft.reasons[name_of(last)] = "its input and its output are float"
            chosen[name] = Candidate(node, rule, node)
        elif rule.form == "weighted" or (fits and is_required):
            chosen[name] = Candidate(node, rule, last)
    for name in draft.candidates.keys() - chosen.keys():
        node, _, last = draft.candidates[name]
        for left in (node, last):
            draft.reasons[name_of(left)] = (
                "its neighbours compute in float, so codes would be converted for nothing"
            )
    return chosen


def _is_worth_converting(node: ir.Node, rule: OpRule) -> bool:
    """Return True when an op that can write floats saves more in integers than its conversion.

    Its input must be codes already (not a graph input), of known size.
    """
    source, shape = node.inputs[0], dims(node.inputs[0])
    return (
        rule.output == "either"
        and source is not None
        and not source.is_graph_input()
        and shape is not None
        and all(isinstance(d, int) for d in shape[1:])
    )


def _assign_grids(
    draft: _Draft, chosen: Mapping[str, Candidate], required: Collection[ir.Value]
) -> QuantPlan:
    """Make sites and grids; values between which codes move unchanged share a grid."""
    sites: dict[str, Site] = {}
    data_movement: set[str] = set()
    constants: dict[str, QuantSpec] = {}
    for name, (node, rule, last) in chosen.items():
        operands = _operands(node, rule)
        inputs = tuple(dict.fromkeys(name_of(v) for v in operands))
        for value in inputs:
            draft.find(value)
        if rule.form == "same_grid":
            data_movement.add(name)
            for out in filter(is_code_output, node.outputs):
                draft.join(inputs[0], name_of(out))
            continue
        out = last.outputs[0]
        if rule.output == "quantized" or out in required:
            draft.find(name_of(out))
        if rule.form == "concat":
            for operand in operands:
                if is_free_for_concat(operand, chosen):
                    draft.join(name_of(out), name_of(operand))
        weight = bias = None
        if rule.weight is not None:
            weight, bias = _add_weight_specs(node, rule, draft, constants)
        nodes = tuple(dict.fromkeys((name, name_of(last))))
        sites[name] = Site(name, node.op_type, nodes, inputs, name_of(out), weight, bias)
    grid_of = {value: draft.find(value) for value in draft.parent}
    widths = _grid_widths(draft, chosen)
    act = draft.target.activations
    grids = {g: replace(act, bits=widths.get(g, act.bits)) for g in grid_of.values()}
    if draft.target.unsigned_where_positive:
        for grid in positive_grids(chosen, grid_of):
            grids[grid] = replace(grids[grid], signed=False)
    grids.update(constants)
    grid_of.update({name: name for name in constants})
    return QuantPlan(
        sites=sites, data_movement_ops=frozenset(data_movement), grid_of=grid_of, grids=grids
    )


def _grid_widths(draft: _Draft, chosen: Mapping[str, Candidate]) -> dict[str, int]:
    """Map each grid to the largest width that one of its readers requests."""
    widths: dict[str, int] = {}
    for node, rule, _ in chosen.values():
        if rule.form == "same_grid":
            continue
        requested = draft.bits.of(node).activations or 0
        if rule.form != "weighted":
            requested = max(requested, draft.target.activations.bits)
        for value in _operands(node, rule):
            grid = draft.find(name_of(value))
            widths[grid] = max(widths.get(grid, 0), requested)
    return widths


def _add_weight_specs(
    node: ir.Node, rule: OpRule, draft: _Draft, constants: dict[str, QuantSpec]
) -> tuple[str, str | None]:
    """Add the QuantSpecs of a node's weight and bias to ``constants``; return their names."""
    bits = draft.bits
    weight = node.inputs[rule.weight or 1].name or ""  # type: ignore[union-attr]
    axis = weight_axis(node)
    granularity = PerTensor() if bits.granularity == "tensor" else PerChannel(axis)
    width = bits.of(node).weights or 8
    if weight in constants:  # shared with another node: the larger of the two widths
        width = max(width, constants[weight].bits)
    constants[weight] = replace(draft.target.weights, bits=width, granularity=granularity)
    bias = bias_of(node, rule)
    if bias is None or bias.name is None or draft.target.bias == "float":
        return weight, None
    along = PerTensor() if bits.granularity == "tensor" else PerChannel(0)
    constants[bias.name] = QuantSpec(32, True, True, along)
    return weight, bias.name
