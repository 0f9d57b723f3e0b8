"""The stages between reading a model and writing it, as functions of graphs and plans.

The pipeline times and remembers them; the Python API calls them as they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.annotation.annotator import annotate
from qtool.annotation.integer_only import check_no_float_nodes
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.calibration.statistics import Calibrator
from qtool.errors import UnsupportedError
from qtool.graph.queries import WEIGHTED_OPS
from qtool.loading import infer_shapes
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan
from qtool.rewrites import REWRITES
from qtool.rewrites.separate_widths import separate_widths
from qtool.targets.target import Target
from qtool.weights.grids import weight_grids
from qtool.weights.int16_saturation import safe_scales
from qtool.weights.scale_constraints import constrain_plan_scales, request_scale_kind


def rewrite(
    model: ir.Model,
    names: Sequence[str],
    bits: Bits,
    folded: Callable[[], None] = lambda: None,
) -> list[str]:
    """Rewrite the graph in place.

    Args:
        model: the graph as it was read, its inputs' shapes bound.
        names: of rewrites, in order.
        bits: nodes that stay float are left as they are.
        folded: called once constants are folded and shapes are known.

    Returns:
        What applied, and how often.
    """
    notes = []
    for name in names:
        times = REWRITES[name](model, bits.integer)
        if times:
            notes.append(f"{name}: {times} times")
        if name == "fold_constants":
            # Shapes that depended on computed constants are known only now.
            infer_shapes(model)
            folded()
    infer_shapes(model)
    return notes


def make_plan(model: ir.Model, target: Target, bits: Bits, name: str) -> QuantPlan:
    """The plan without grids.

    Args:
        model: the rewritten graph; changed where a value must be read at two widths.
        target: what the runtime executes.
        bits: what is asked for.
        name: the model, for messages.

    Raises:
        UnsupportedError: there is nothing to quantize, or the target has no floats and the network
            has one between integer layers.
    """
    plan = annotate(model, target, bits)
    if "LeakyRelu" in target.ops and separate_widths(
        model, plan, lambda node: bits.of(node).activations
    ):
        plan = annotate(model, target, bits)
    plan = request_scale_kind(plan, bits.scale)
    if plan.weight_only and None in (
        bits.activations,
        *(w.activations for w in bits.layers.values()),
    ):
        return plan  # codes for weights only
    if target.integer_only:
        check_no_float_nodes(model, plan)
    if not any(site.weight is not None for site in plan.sites.values()):
        left = [n.name or "" for n in model.graph if n.op_type in WEIGHTED_OPS]
        reasons = [f"{n}: {plan.float_nodes[n]}" for n in left if n in plan.float_nodes]
        reason = reasons[0] if reasons else "it has no Conv, Gemm or MatMul"
        raise UnsupportedError(
            f"model {name}: there is nothing to quantize: {reason}; "
            "Conv, Gemm and MatMul with constant float32 weights are quantized"
        )
    return plan


def make_grids(
    model: ir.Model,
    plan: QuantPlan,
    batches: Iterable[Mapping[str, np.ndarray]],
    calibrator: Calibrator,
    scheme: Any = None,
    threads: int | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
    target: Target | None = None,
) -> QuantPlan:
    """Statistics of one pass over the calibration data, and the grids they give.

    Args:
        model: the rewritten graph.
        plan: without grids.
        batches: the data, by input name; as many rows at a time as fit in memory.
        calibrator: chooses the grids of activations.
        scheme: chooses those of weights of 2 to 7 bits; Uniform by default.
        threads: for ONNX Runtime.
        on_batch: told the rows of every batch.
        target: what the runtime executes, where scales depend on it.
    """
    # First, so that a weight that is not finite is named, and not the value it makes.
    plan = weight_grids(model, plan, scheme)
    observed = observed_values(model, plan)
    if not observed:
        return plan.note("no activation has a grid, so no calibration sample was read")
    stats = collect(
        model,
        observed,
        batches,
        histograms=calibrator.needs_histogram,
        threads=threads,
        on_batch=on_batch,
    )
    return constrain_weight_scales(model, choose_grids(plan, stats, calibrator), target)


def constrain_weight_scales(model: ir.Model, plan: QuantPlan, target: Target | None) -> QuantPlan:
    """Scales of weights as recipe and target need them, once every grid is found."""
    if target is not None and target.int16_pairs:
        plan = safe_scales(model, plan)
    return constrain_plan_scales(model, plan)
