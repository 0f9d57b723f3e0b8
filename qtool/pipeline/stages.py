"""Compose the stages from a float graph to its quantized plan and file.

Every command goes through these functions: ``qtool ptq``, ``qat`` and ``check``, the helper
processes of distributed training, and the Python API.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.annotation.annotator import annotate
from qtool.annotation.blocks import block_notes
from qtool.annotation.integer_only import check_no_float_nodes
from qtool.calibration import CALIBRATORS
from qtool.calibration.collect import (
    batch_size,
    check_supported,
    collect,
    observed_values,
)
from qtool.calibration.statistics import Calibrator
from qtool.calibration.weight_ranges import WeightRange, check_weights_supported
from qtool.data import Dataset
from qtool.emitters import emit_model
from qtool.errors import RecipeError, UnsupportedError
from qtool.graph.queries import WEIGHTED_OPS, release_weight_pages
from qtool.graph.save import save_model
from qtool.loading import infer_shapes
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan, same_structure
from qtool.quant.plan_archive import load_plan_archive, save_plan_archive
from qtool.quant.plan_io import read_plan
from qtool.quant.quantized_io import QuantizedIO
from qtool.recipe.model import Recipe
from qtool.rewrites import REWRITES, SAMPLE_REWRITES, rewrite_names
from qtool.rewrites.folding.add_bias import add_bias
from qtool.rewrites.separate_widths import separate_widths
from qtool.steps.context import Context
from qtool.steps.guard import AppliedSteps, NamedStep, apply_steps
from qtool.steps.output_error import widen_by_output
from qtool.steps.range_choice import best_ranges
from qtool.steps.rewrite_samples import rewrite_samples
from qtool.verification.environment import instruction_sets
from qtool.weights import SCHEMES
from qtool.weights.estimated import EstimatedRanges
from qtool.weights.grids import weight_grids
from qtool.weights.int16_saturation import safe_scales
from qtool.weights.scale_constraints import constrain_plan_scales, request_scale_kind
from qtool.weights.scheme import WeightScheme


@dataclass(frozen=True)
class Emitted:
    """The quantized file.

    Attributes:
        plan: frozen.
        model: as it was written.
        io: grids of inputs and outputs that are codes.
        path: of the file.
    """

    plan: QuantPlan
    model: ir.Model
    io: QuantizedIO
    path: Path


def rewrite(
    recipe: Recipe, context: Context, on_folded: Callable[[], None] = lambda: None
) -> list[str]:
    """Rewrite the graph in place; the float function stays equal.

    Args:
        recipe: names the rewrites, or leaves them to the target.
        context: the graph as it was read, its inputs' shapes bound.
        on_folded: called once constants are folded and shapes are known.

    Returns:
        How often each rewrite applied, for the report.
    """
    model, bits = context.model, context.bits
    names = rewrite_names(recipe.rewrite, context.target.rewrites)
    notes = []
    for name in names:
        if name in SAMPLE_REWRITES:
            times = SAMPLE_REWRITES[name](model, bits.integer, rewrite_samples(context))
        else:
            times = REWRITES[name](model, bits.integer)
        if times:
            notes.append(f"{name}: {times} times")
        notes += [f"{name}: {model.meta.pop(name)}"] if name in model.meta else []
        if name == "fold_constants":
            # Shapes that depended on computed constants are known only now.
            infer_shapes(model)
            on_folded()
    if any("bias" in step.step.needs for step in ptq_steps(recipe)):
        times = add_bias(model, bits.integer)
        notes += [f"add_bias: {times} times"] if times else []
    infer_shapes(model)
    return notes


def make_plan(context: Context) -> QuantPlan:
    """Return the plan without grids: which values get one, which nodes run in integers.

    Args:
        context: its graph is rewritten; changed where a value must be read at two widths.

    Raises:
        UnsupportedError: there is nothing to quantize, or the target has no floats and the network
            has one between integer layers.
    """
    model, target, bits = context.model, context.target, context.bits
    plan = annotate(model, target, bits)
    if "LeakyRelu" in target.ops and separate_widths(
        model, plan, lambda node: bits.of(node).activations
    ):
        plan = annotate(model, target, bits)
    plan = request_scale_kind(plan, bits.scale)
    widths = (bits.activations, *(w.activations for w in bits.layers.values()))
    if plan.weight_only and None in widths:
        return plan  # codes for weights only
    if target.integer_only:
        check_no_float_nodes(model, plan)
    if not any(site.weight is not None for site in plan.sites.values()):
        names = [n.name or "" for n in model.graph if n.op_type in WEIGHTED_OPS]
        reasons = [f"{n}: {plan.float_nodes[n]}" for n in names if n in plan.float_nodes]
        reason = reasons[0] if reasons else "it has no Conv, Gemm or MatMul"
        raise UnsupportedError(
            f"model {context.name}: there is nothing to quantize: {reason}; "
            "Conv, Gemm and MatMul with constant float32 weights are quantized"
        )
    return plan


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


def calibrated(recipe: Recipe, context: Context, plan: QuantPlan) -> QuantPlan:
    """Return the plan with the grids of all activations and weights, cached between runs.

    Args:
        recipe: names the calibrator and the scheme.
        context: holds the graph and the calibration samples.
        plan: without grids.

    Raises:
        DataError: a value, weight or bias is NaN or infinite, or there is no sample.
    """
    with context.cache.stage("calibrate") as record:
        parts = (
            context.sha256,
            str(dict(context.inputs)),
            context.calibration.digest,
            recipe.calibrate.model_dump_json(),
            recipe.bits.model_dump_json(),
            str(recipe.rewrite),
            repr(context.target),
            repr((plan.sites, plan.grid_of, plan.weight_only)),
        )
        grids = context.cache.cached(
            record,
            "grids",
            parts,
            lambda: make_grids(
                context,
                plan,
                recipe.calibrate.method.build(CALIBRATORS),
                weight_scheme(recipe, plan),
            ),
            save_plan_archive,
            lambda path: load_plan_archive(path)[0],
        )
        return replace(plan, grids=grids.grids, codes=grids.codes, log=grids.log)


def weight_scheme(recipe: Recipe, plan: QuantPlan) -> WeightScheme:
    """Return what computes the grids of weights, as the recipe names it.

    Raises:
        RecipeError: the estimator of their ranges is not defined for a weight.
    """
    if recipe.calibrate.weights is None:
        return recipe.bits.scheme.build(SCHEMES)
    ranges = WeightRange(recipe.calibrate.weights.build(CALIBRATORS))
    sites = (site.weight or "" for site in plan.sites.values())
    with recipe.locate_errors():
        check_weights_supported(plan, plan.weight_only.union(sites), ranges)
    return EstimatedRanges(ranges)


def make_grids(
    context: Context, plan: QuantPlan, calibrator: Calibrator, scheme: WeightScheme | None = None
) -> QuantPlan:
    """Return the plan with grids estimated in one pass over the calibration data.

    Args:
        context: holds the graph and the calibration samples.
        plan: without grids.
        calibrator: estimates the grids of activations.
        scheme: computes those of weights; None: equal steps.
    """
    model = context.model
    # First, so that a weight that is not finite is named, and not the value it makes.
    plan = weight_grids(model, plan, scheme, context.progress)
    observed = observed_values(model, plan)
    if not observed:
        return plan.note("no activation has a grid, so no calibration sample was read")
    check_supported(model, plan, observed, calibrator)
    use_holdout = calibrator.finalists and context.calibration.count > 1
    data = context.fit if use_holdout else context.calibration
    total, done = data.count, 0

    def on_batch(rows: int) -> None:
        nonlocal done
        done = min(done + rows, total)
        context.progress("calibrate", done, total)

    stats = collect(
        model,
        observed,
        _calibration_batches(context, observed, data),
        histograms=calibrator.needs_histogram,
        smoothing=calibrator.smoothing,
        threads=context.threads,
        on_batch=on_batch,
    )

    def finish(chosen: QuantPlan) -> QuantPlan:
        if calibrator.by_output:
            with closing(_calibration_batches(context, observed, data)) as batches:
                chosen = widen_by_output(model, chosen, stats, batches, context.threads)
        return constrain_scales(context, chosen)

    return best_ranges(context, plan, stats, calibrator, finish)


def _calibration_batches(
    context: Context, observed: tuple[str, ...], data: Dataset
) -> Generator[Mapping[str, np.ndarray], None, None]:
    """Yield the calibration data, as many samples at a time as fit in memory."""
    fixed = context.fixed_batch
    rows = fixed or batch_size(context.model, observed, data.count)
    for batch in (b for b, _ in data.padded(rows)) if fixed else data.batches(rows):
        yield {name: batch[name] for name in context.inputs}


def constrain_scales(context: Context, plan: QuantPlan) -> QuantPlan:
    """Return the plan with weight scales as recipe and target need them.

    Args:
        context: holds the graph and the target.
        plan: every grid is calibrated.
    """
    if context.target.int16_pairs:
        plan = safe_scales(context.model, plan)
    return constrain_plan_scales(context.model, plan)


def reused(recipe: Recipe, context: Context, plan: QuantPlan, file: Path) -> QuantPlan:
    """Return the plan with the activation grids of an earlier run; nothing is calibrated.

    Weights get grids of their own, also where they were trained again since.

    Args:
        recipe: names the scheme of the weights.
        context: holds the graph and the target.
        plan: without grids.
        file: a ``plan.json``.

    Raises:
        RecipeError: the file was made for another model, target or recipe.
    """
    with context.cache.stage("calibrate") as record:
        earlier = read_plan(file)
        if not same_structure(earlier, plan):
            raise RecipeError(
                f"plan {file}: it was made for another model, target or recipe (bits, "
                "granularity, layers); leave out --plan to calibrate"
            )
        record.notes.append(f"grids taken from {file}; nothing was calibrated")
        weights = plan.weight_only.union(s.weight or "" for s in plan.sites.values())
        activations = {k: g for k, g in earlier.grids.items() if k not in weights}
        plan = replace(plan, grids={**plan.grids, **activations})
        scheme = weight_scheme(recipe, plan)
        plan = weight_grids(context.model, plan, scheme, context.progress)
        return constrain_scales(context, plan)


def ptq_steps(recipe: Recipe) -> list[NamedStep]:
    """Return the post-training steps that the recipe names, built with their options."""
    if not recipe.ptq:
        return []
    from qtool.ptq import PTQ_STEPS  # it imports torch, which runs without steps import later

    return [
        NamedStep(choice.name, choice.build(PTQ_STEPS), choice.model_dump_json())
        for choice in recipe.ptq
    ]


def quantize(
    recipe: Recipe,
    context: Context,
    plan_file: Path | None = None,
    training: tuple[NamedStep, ...] = (),
) -> AppliedSteps:
    """Return the plan of a rewritten graph: annotated, calibrated, repaired and trained.

    Args:
        recipe: what to do.
        context: its graph is rewritten.
        plan_file: a ``plan.json`` whose grids are used instead of calibrating.
        training: steps after those of the recipe's ``ptq``.
    """
    plan = annotated(context)
    if plan_file is None:
        plan = calibrated(recipe, context, plan)
    else:
        plan = reused(recipe, context, plan, plan_file)
    return apply_steps((*ptq_steps(recipe), *training), plan, context)


def freeze_and_emit(recipe: Recipe, context: Context, plan: QuantPlan, path: Path) -> Emitted:
    """Round the plan to its final integers and write the file.

    Args:
        recipe: names the format, opset and kind of inputs and outputs.
        context: holds the graph and the target.
        plan: of all steps.
        path: of the file; its folder exists.
    """
    model, target, output = context.model, context.target, recipe.output
    with context.cache.stage("freeze") as record:
        plan = freeze(model, plan)
        record.notes += plan.log
    release_weight_pages(model)
    with context.cache.stage("emit") as record:
        emitted, io, notes = emit_model(model, plan, target, output.format or "qdq", output.io)
        if output.io == "quantized" and not io.inputs and not io.outputs:
            raise recipe.error(("output", "io"), f"quantized: {'; '.join(notes)}; write io: float")
        record.notes += notes
        if target.runtime != "onnxruntime":
            record.notes.append(
                f"WARNING: kernels and latency in this report are those of ONNX Runtime, which "
                f"checks the file; {target.runtime} has its own"
            )
        missing = [name for name in target.isa if name not in instruction_sets()]
        if missing:
            record.notes.append(
                f"WARNING: files for {target.name} gain speed on processors with "
                f"{', '.join(missing)}, which this one lacks; its latency says nothing about them"
            )
        save_model(emitted, path)
    return Emitted(plan, emitted, io, path)
