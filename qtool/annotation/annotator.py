"""Which values live on which grids: the target's rules applied to one graph.

Three passes over the nodes. Forward: a value is *available* when the node that makes it can write
codes. Backward: a value is *wanted* when a node reads it as codes. An op in between (Add, Concat,
MaxPool, Reshape ...) computes on codes when its inputs are available and its output is wanted;
anything else would only add conversions. Then grids are handed out, and shared where codes pass
unchanged.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qtool.annotation.dynamic import add_dynamic, is_large
from qtool.annotation.neighbors import positive_grids, private, without_fused
from qtool.graph.queries import (
    attribute,
    clip_limits,
    constant,
    dims,
    is_constant,
    is_float,
    rank,
    sole_reader,
    weight_axis,
)
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import Granularity, PerBlock, PerChannel, PerTensor, QuantSpec
from qtool.targets.target import OpRule, Target

# Below this many numbers the scales and nodes cost more than the codes save.
STORED_SIZE = 1024


@dataclass
class _Draft:
    """What the passes below collect."""

    target: Target
    bits: Bits
    candidates: dict[str, tuple[ir.Node, OpRule, ir.Node]] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    parent: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        self.parent[self.find(b)] = self.find(a)


def annotate(model: ir.Model, target: Target, bits: Bits) -> QuantPlan:
    """Make the plan: sites, shared grids as QuantSpecs, and why the rest stays float.

    Args:
        model: the rewritten graph, with names and shapes.
        target: what the runtime executes in integers.
        bits: what the recipe asks for.
    """
    draft = _Draft(target, bits)
    nodes = list(model.graph)
    _propose(nodes, draft)
    available = _available(model, nodes, draft)
    wanted = _wanted(nodes, draft, available)
    reasons = dict(draft.floats)
    chosen = {}
    for name, (node, rule, last) in draft.candidates.items():
        is_wanted = not wanted.isdisjoint(last.outputs)
        fits = available.issuperset(_data(node, rule))
        worth = rule.form == "weighted" or (fits and _worth_it(node, rule))
        if not is_wanted and rule.output == "either" and worth:
            # It writes floats: there is no output grid that an activation could vanish into.
            if last is not node:
                reasons[last.name or ""] = "its input and its output are float"
            chosen[name] = (node, rule, node)
        elif rule.form == "weighted" or (fits and is_wanted):
            chosen[name] = (node, rule, last)
    for name in draft.candidates.keys() - chosen.keys():
        node, _, last = draft.candidates[name]
        for left in (node, last):
            reasons[left.name or ""] = (
                "its neighbours compute in float, so codes would be converted for nothing"
            )
    # In graph order: equal plans must give equal files.
    floats = {name: reasons[name] for n in nodes if (name := n.name or "") in reasons}
    plan = replace(_hand_out(draft, chosen, wanted), float_nodes=floats)
    return add_dynamic(nodes, target, bits, _store(nodes, draft, plan))


def _store(nodes: Sequence[ir.Node], draft: _Draft, plan: QuantPlan) -> QuantPlan:
    """Keep large weights of float ops as codes, where the target can and every reader agrees."""
    wishes: dict[str, set[int]] = {}
    widths: dict[str, int] = {}
    for node in nodes:
        bits = draft.bits.of(node).weights
        if bits is None or node.name in plan.integer_nodes:
            continue
        for position, axis in _storable(node, draft).items():
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is None or not is_constant(value) or value.dtype != ir.DataType.FLOAT:
                continue
            shape = dims(value)
            size = np.prod([int(str(d)) for d in shape or ()])
            if shape and (size >= STORED_SIZE or is_large(node, draft.target, draft.bits)):
                name = value.name or ""
                wishes.setdefault(name, set()).add(axis % len(shape))
                widths[name] = max(widths.get(name, 0), bits)
    grids, grid_of = dict(plan.grids), dict(plan.grid_of)
    here = {id(n) for n in nodes}
    values = {v.name: v for n in nodes for v in n.inputs if v is not None and v.name in wishes}
    stored = set()
    for name, axes in wishes.items():
        floats = [u for u in values[name].uses() if u[0].name not in plan.integer_nodes]
        agreed = all(id(u) in here and p in _storable(u, draft) for u, p in floats)
        asked = all(draft.bits.of(u).weights is not None for u, _ in floats)
        if not agreed or not asked or values[name].is_graph_output():
            continue
        spec = plan.spec(name)
        if spec is None:
            granularity = _granularity(values[name], axes, draft.bits)
            grids[name] = replace(draft.target.weights, bits=widths[name], granularity=granularity)
            grid_of[name] = name
        elif not spec.symmetric:
            continue
        stored.add(name)
    return replace(plan, grids=grids, grid_of=grid_of, weight_only=frozenset(stored))


def _storable(node: ir.Node, draft: _Draft) -> Mapping[int, int]:
    """Input position -> axis of the scales, of weights a float op may have as codes."""
    stores = draft.target.stores.get(node.op_type, {})
    rule = draft.target.ops.get(node.op_type)
    asked = draft.bits.of(node).activations is None and node.domain in ("", "ai.onnx")
    if asked and rule is not None and rule.weight is not None:
        return {**stores, rule.weight: weight_axis(node)}
    return stores


def _granularity(value: ir.Value, axes: Collection[int], bits: Bits) -> Granularity:
    """How many scales the weights of a float op get; ``axes`` are those its readers want."""
    if len(axes) != 1 or bits.granularity == "tensor":
        return PerTensor()
    axis, shape = next(iter(axes)), dims(value) or ()
    reduced = 1 if axis == 0 else 0
    if bits.granularity == "block" and len(shape) > 1 and int(str(shape[reduced])) > bits.block:
        return PerBlock(reduced, bits.block)
    return PerChannel(axis)


def _propose(nodes: Iterable[ir.Node], draft: _Draft) -> None:
    """Fill ``candidates`` (name -> node, rule, last fused node) and the reasons of the others."""
    taken: set[str] = set()
    for node in nodes:
        name = node.name or ""
        if name in taken or not any(is_float(v) for v in (*node.inputs, *node.outputs)):
            continue
        if node.op_type in ("Shape", "Size"):
            continue  # they read no numbers
        rule, reason = _rule(node, draft)
        if rule is None:
            draft.floats[name] = reason
            continue
        last = node
        follower = sole_reader(node.outputs[0]) if len(node.outputs) == 1 else None
        if follower is not None and _absorbed(follower, rule, draft):
            last = follower
            taken.add(follower.name or "")
        draft.candidates[name] = (node, without_fused(node, rule, draft.candidates), last)


def _absorbed(follower: ir.Node, rule: OpRule, draft: _Draft) -> bool:
    """True when the activation behind an op vanishes into the op's output grid."""
    asked = draft.bits.integer(follower)
    return follower.op_type in rule.absorbs and _keeps_zero(follower) and asked


def _rule(node: ir.Node, draft: _Draft) -> tuple[OpRule | None, str]:
    weights, activations, _ = draft.bits.of(node)
    if weights is None:
        return None, "the recipe asks for float"
    if activations is None:
        return None, "the recipe asks for float activations"
    rule = draft.target.ops.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return None, f"{draft.target.name} has no integer kernel for {node.op_type}"
    defaults = {"transA": 0, "mode": {"Pad": "constant"}.get(node.op_type, "nearest")}
    for key, needed in rule.when.items():
        found = attribute(node, key, defaults.get(key))
        if found != needed:
            return None, f"{draft.target.name} needs {key} = {needed}, found {found}"
    if rule.form == "weighted":
        return (rule, "") if not (why := _why_not_weighted(node, rule)) else (None, why)
    if node.op_type == "Pad" and not _zero_pad(node):
        return None, "only a constant Pad with zeros moves codes unchanged"
    if node.op_type == "AveragePool" and (why := _why_not_average(node)):
        return None, f"{draft.target.name}'s integer kernel {why}"
    if any(v is not None and is_float(v) and v.dtype != ir.DataType.FLOAT for v in node.inputs):
        return None, "only float32 is quantized"
    return rule, ""


def _why_not_weighted(node: ir.Node, rule: OpRule) -> str:
    weight = node.inputs[rule.weight] if rule.weight is not None else None
    if not is_constant(weight) or weight is None:
        return "its weights are computed, not constant"
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weights are {weight.dtype}, not float32"
    if 0 in (dims(weight) or ()):
        return "its weights are empty"
    if is_constant(node.inputs[0]):
        return "its input is a constant"
    if node.op_type in ("Gemm", "MatMul") and rank(weight) != 2:
        return "its weight is not a matrix"
    bias = (
        node.inputs[rule.bias] if rule.bias is not None and len(node.inputs) > rule.bias else None
    )
    if bias is not None and (not is_constant(bias) or rank(bias) != 1):
        return "its bias is not a constant vector"
    if node.op_type == "Gemm":
        for key in ("alpha", "beta"):
            if attribute(node, key, 1.0) != 1.0:
                return f"{key} is not 1"
    return ""


def _why_not_average(node: ir.Node) -> str:
    """What QLinearAveragePool does not do as ONNX defines it."""
    if any(d != 1 for d in attribute(node, "dilations", ())):
        return "knows no dilations"
    if attribute(node, "ceil_mode", 0) and attribute(node, "count_include_pad", 0):
        return "divides windows that reach past the padding (ceil_mode) by the whole kernel"
    return ""


def _zero_pad(node: ir.Node) -> bool:
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(fill)
    return is_constant(node.inputs[1]) and (fill is None or (array is not None and not array.any()))


def _keeps_zero(node: ir.Node) -> bool:
    """True when a grid that holds zero can stand for this activation."""
    if node.op_type != "Clip":
        return True
    lo, hi = clip_limits(node)
    return lo is not None and hi is not None and lo <= 0 <= hi


def _data(node: ir.Node, rule: OpRule) -> list[ir.Value]:
    """The float operands that a rule wants on grids."""
    chosen = node.inputs if not rule.inputs else [node.inputs[i] for i in rule.inputs]
    if rule.form == "weighted":
        # A custom op in front may leave the type unknown; float weights need a float input.
        return [v for v in chosen if v is not None]
    return [v for v in chosen if v is not None and is_float(v)]


def _available(model: ir.Model, nodes: Iterable[ir.Node], draft: _Draft) -> set[ir.Value]:
    available = {v for v in model.graph.inputs if v.dtype == ir.DataType.FLOAT}
    available.update(v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    for node in nodes:
        if node.name not in draft.candidates:
            continue
        _, rule, last = draft.candidates[node.name]
        operands = _data(node, rule)
        computed = any(not is_constant(v) for v in operands)
        if rule.form == "weighted" or (computed and available.issuperset(operands)):
            available.update(last.outputs)
    return available


def _wanted(nodes: list[ir.Node], draft: _Draft, available: set[ir.Value]) -> set[ir.Value]:
    wanted = {v for v in available if v.is_graph_output()} if draft.bits.code_outputs else set()
    for node in reversed(nodes):
        if node.name not in draft.candidates:
            continue
        _, rule, last = draft.candidates[node.name]
        operands = _data(node, rule)
        if rule.form == "weighted" or (
            available.issuperset(operands)
            and (wanted.intersection(last.outputs) or _worth_it(node, rule))
        ):
            wanted.update(operands)
    return wanted


def _worth_it(node: ir.Node, rule: OpRule) -> bool:
    """True when an op that can write floats saves more in integers than its conversion costs.

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


def _hand_out(
    draft: _Draft,
    chosen: Mapping[str, tuple[ir.Node, OpRule, ir.Node]],
    wanted: Collection[ir.Value],
) -> QuantPlan:
    """Sites and grids. Activation grids are shared where codes pass unchanged."""
    sites: dict[str, Site] = {}
    passes: set[str] = set()
    fixed: dict[str, QuantSpec] = {}
    for name, (node, rule, last) in chosen.items():
        operands = _data(node, rule)
        inputs = tuple(dict.fromkeys(v.name or "" for v in operands))
        for value in inputs:
            draft.find(value)
        if rule.form == "same_grid":
            passes.add(name)
            for out in node.outputs:
                draft.join(inputs[0], out.name or "")
            continue
        out = last.outputs[0]
        if rule.output == "quantized" or out in wanted:
            draft.find(out.name or "")
        if rule.form == "concat":
            for operand in operands:
                if private(operand, chosen):
                    draft.join(out.name or "", operand.name or "")
        weight = bias = None
        if rule.weight is not None:
            weight, bias = _weight_specs(node, rule, draft, fixed)
        nodes = tuple(dict.fromkeys((name, last.name or "")))
        sites[name] = Site(name, node.op_type, nodes, inputs, out.name or "", weight, bias)
    grid_of = {value: draft.find(value) for value in draft.parent}
    widths = _grid_widths(draft, chosen)
    act = draft.target.activations
    grids = {g: replace(act, bits=widths.get(g, act.bits)) for g in grid_of.values()}
    if draft.target.unsigned_where_positive:
        for grid in positive_grids(chosen, grid_of):
            grids[grid] = replace(grids[grid], signed=False)
    grids.update(fixed)
    grid_of.update({name: name for name in fixed})
    return QuantPlan(sites=sites, data_movement_ops=frozenset(passes), grid_of=grid_of, grids=grids)


def _grid_widths(
    draft: _Draft, chosen: Mapping[str, tuple[ir.Node, OpRule, ir.Node]]
) -> dict[str, int]:
    """Grid -> the finest width any of its readers asks for."""
    widths: dict[str, int] = {}
    for node, rule, _ in chosen.values():
        if rule.form == "same_grid":
            continue
        asked = draft.bits.of(node).activations or 0
        if rule.form != "weighted":
            asked = max(asked, draft.target.activations.bits)
        for value in _data(node, rule):
            grid = draft.find(value.name or "")
            widths[grid] = max(widths.get(grid, 0), asked)
    return widths


def _weight_specs(
    node: ir.Node, rule: OpRule, draft: _Draft, fixed: dict[str, QuantSpec]
) -> tuple[str, str | None]:
    bits = draft.bits
    weight = node.inputs[rule.weight or 1].name or ""  # type: ignore[union-attr]
    axis = weight_axis(node)
    granularity = PerTensor() if bits.granularity == "tensor" else PerChannel(axis)
    width = bits.of(node).weights or 8
    if weight in fixed:  # shared with another node: the finer of two wishes
        width = max(width, fixed[weight].bits)
    fixed[weight] = replace(draft.target.weights, bits=width, granularity=granularity)
    bias = (
        node.inputs[rule.bias] if rule.bias is not None and len(node.inputs) > rule.bias else None
    )
    if bias is None or bias.name is None or draft.target.bias == "float":
        return weight, None
    along = PerTensor() if bits.granularity == "tensor" else PerChannel(0)
    fixed[bias.name] = QuantSpec(32, True, True, along)
    return weight, bias.name
