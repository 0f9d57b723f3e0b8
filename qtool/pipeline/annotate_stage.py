"""The annotate stage: the plan without grids, and what the report says about it."""

from collections.abc import Mapping

import onnx_ir as ir

from qtool.annotation.annotator import annotate
from qtool.annotation.blocks import block_notes
from qtool.annotation.integer_only import check_no_float_nodes
from qtool.annotation.placement import placement_reasons
from qtool.errors import UnsupportedError
from qtool.graph.queries import WEIGHTED_OPS, nested
from qtool.quant.plan import QuantPlan
from qtool.rewrites.separate_widths import separate_widths
from qtool.steps.context import Context
from qtool.weights.scale_constraints import request_scale_kind


def make_plan(context: Context, islands: Mapping[str, str] | None = None) -> QuantPlan:
    """Return the plan without grids: which values get one, which nodes run in integers.

    Args:
        context: its graph is rewritten; changed where a value must be read at two widths.
        islands: nodes that stay float, by name, with the reason; those of the context's placement
            are added.

    Raises:
        UnsupportedError: there is nothing to quantize, or the target has no floats and the network
            has one between integer layers.
    """
    model, target, bits = context.model, context.target, context.bits
    islands = {**placement_reasons(model.graph, target, context.placement), **(islands or {})}
    plan = annotate(model, target, bits, islands)
    if "LeakyRelu" in target.ops and separate_widths(
        model, plan, lambda node: bits.of(node).activations
    ):
        plan = annotate(model, target, bits, islands)
    plan = request_scale_kind(plan, bits.scale)
    widths = (bits.activations, *(w.activations for w in bits.layers.values()))
    if plan.weight_only and None in widths:
        return plan  # codes for weights only
    if target.integer_only:
        check_no_float_nodes(model, plan)
    if not any(site.weight is not None for site in plan.sites.values()):
        names = [n.name or "" for n in model.graph if n.op_type in WEIGHTED_OPS]
        reasons = [f"{n}: {plan.float_nodes[n]}" for n in names if n in plan.float_nodes]
        reason = reasons[0] if reasons else _why_no_layers(model)
        raise UnsupportedError(
            f"model {context.name}: there is nothing to quantize: {reason}; "
            "Conv, Gemm and MatMul with constant float32 weights are quantized"
        )
    return plan


def _why_no_layers(model: ir.Model) -> str:
    """Return why a graph has no layers with weights."""
    for node in model.graph:
        if any(
            inner.op_type in WEIGHTED_OPS for body in nested(node) for inner in body.all_nodes()
        ):
            return (
                f"its layers are in the bodies of {node.name} ({node.op_type}), which stay as they "
                "are; where an input decides which branch runs, say what it is, such as "
                "`model: {onnx: .., input: {sr: {constant: 16000}}}`"
            )
    return "it has no Conv, Gemm or MatMul"


def annotated(context: Context) -> QuantPlan:
    """Return the plan without grids, with its stage in the report."""
    with context.cache.stage("annotate") as record:
        plan = make_plan(context)
        record.notes += _placement_notes(context.model, plan)
    return plan


def _placement_notes(model: ir.Model, plan: QuantPlan) -> list[str]:
    """Return what runs in integers, what moves codes, and what stays float and why."""
    notes = [
        f"{len(plan.sites)} integer sites, {len(plan.data_movement_ops)} ops that move codes, "
        f"{len(plan.float_nodes)} ops stay float"
    ]
    if plan.dynamic:
        notes.append(
            f"{len(plan.dynamic)} integer sites compute the grids of their inputs at run time"
        )
    if plan.weight_only:
        notes.append(f"{len(plan.weight_only)} weights of float ops are stored as codes")
    op_types = {node.name: node.op_type for node in model.graph}
    by_reason: dict[str, list[str]] = {}
    for name, reason in plan.float_nodes.items():
        by_reason.setdefault(reason, []).append(op_types[name])
    for reason, ops in by_reason.items():
        listed = ", ".join(f"{ops.count(op)} {op}" for op in sorted(set(ops)))
        notes.append(f"float: {listed}: {reason}")
    return [*notes, *block_notes(list(model.graph), plan.integer_nodes)]
