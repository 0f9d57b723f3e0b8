"""Compose the stages from a float graph to its quantized plan and file.

Every command goes through these functions: ``qtool ptq``, ``qat`` and ``check``, the helper
processes of distributed training, and the Python API.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.emitters import emit_model
from qtool.emitters.joined_groups import joined_notes
from qtool.graph.queries import release_weight_pages
from qtool.graph.save import save_model
from qtool.loading import infer_shapes
from qtool.pipeline.annotate_stage import annotated
from qtool.pipeline.calibration.grids import calibrated, reused
from qtool.pipeline.provenance import provenance_of, write_provenance
from qtool.pipeline.pruning.channels import shrink
from qtool.pipeline.pruning.masks import mask_steps, method_needs
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.quant.quantized_io import QuantizedIO
from qtool.recipe.model import Recipe
from qtool.recipe.registry import KINDS
from qtool.rewrites import LATER, REWRITES, SAMPLE_REWRITES, rewrite_names
from qtool.rewrites.folding.add_bias import add_bias
from qtool.steps.context import Context
from qtool.steps.guard import AppliedSteps, NamedStep, apply_steps
from qtool.steps.rewrite_samples import rewrite_samples
from qtool.verification.environment import instruction_sets


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
    """Rewrite the graph in place; the float function stays equal where no training must follow.

    Args:
        recipe: names the rewrites, or leaves them to the target.
        context: the graph as it was read, its inputs' shapes bound.
        on_folded: called once constants are folded and shapes are known.

    Returns:
        How often each rewrite applied, for the report.
    """
    model, bits = context.model, context.bits
    own = _own_rewrites(context)
    names = rewrite_names(recipe.rewrite, own)
    notes, pending = [], recipe.pruning is not None
    for name in names:
        if pending and name in LATER:  # they change weights, or the form of the first convolution
            notes += shrink(recipe, context)
            pending = False
        if name in SAMPLE_REWRITES:
            if context.calibration.synthetic:
                raise recipe.error(("rewrite",), f"{name} reads samples; give some to calibrate")
            times = SAMPLE_REWRITES[name](model, bits.integer, rewrite_samples(context))
        else:
            times = REWRITES[name](model, bits.integer)
        if times:
            notes.append(f"{name} x{times}")
        elif name not in own:
            notes.append(f"{name} applies nowhere in this model")
        notes += [f"{name}: {model.meta.pop(name)}"] if name in model.meta else []
        if name == "fold_constants":
            # Shapes that depended on computed constants are known only now.
            infer_shapes(model)
            on_folded()
    notes += shrink(recipe, context) if pending else []
    needs = method_needs(recipe).union(*(step.step.needs for step in ptq_steps(recipe)))
    if "bias" in needs:
        times = add_bias(model, bits.integer)
        notes += [f"add_bias x{times}"] if times else []
    infer_shapes(model)
    return notes


def _own_rewrites(context: Context) -> tuple[str, ...]:
    """Return the rewrites of the target that suit the run."""
    no_samples = context.calibration.synthetic or context.bits.code_outputs
    return (*context.target.rewrites, *(() if no_samples else context.target.sample_rewrites))


def ptq_steps(recipe: Recipe) -> list[NamedStep]:
    """Return the post-training steps that the recipe names, built with their options."""
    if not recipe.ptq:
        return []
    table = KINDS["ptq"].table()  # it imports torch, which runs without steps import later
    return [
        NamedStep(choice.name, choice.build(table), choice.model_dump_json())
        for choice in recipe.ptq
    ]


def quantize(
    recipe: Recipe,
    context: Context,
    plan_file: Path | None = None,
    training: tuple[NamedStep, ...] = (),
    on_plan: Callable[[QuantPlan], None] = lambda plan: None,
) -> AppliedSteps:
    """Return the plan of a rewritten graph: annotated, calibrated, pruned, repaired and trained.

    Args:
        recipe: what to do.
        context: its graph is rewritten.
        plan_file: a ``plan.json`` whose grids are used instead of calibrating.
        training: steps after those of the recipe's ``ptq``.
        on_plan: called with the plan before anything is calibrated.
    """
    plan = annotated(context)
    on_plan(plan)
    if plan_file is None:
        plan = calibrated(recipe, context, plan)
    else:
        plan = reused(recipe, context, plan, plan_file)
    return apply_steps((*mask_steps(recipe), *ptq_steps(recipe), *training), plan, context)


def freeze_and_emit(recipe: Recipe, context: Context, plan: QuantPlan, path: Path) -> Emitted:
    """Round the plan to its final integers and write the file.

    Args:
        recipe: names the format, opset and kind of inputs and outputs.
        context: holds the graph and the target.
        plan: of all steps.
        path: of the file; its folder exists.
    """
    target, output = context.target, recipe.output
    with context.cache.stage("freeze") as record:
        plan = freeze(context.model, plan)
        record.notes += plan.log
    release_weight_pages(context.model)
    with context.cache.stage("emit") as record:
        emitted, notes = emit(recipe, context, plan, path)
        io = emitted.io
        if output.io == "quantized" and not io.inputs and not io.outputs:
            raise recipe.error(("output", "io"), f"quantized: {'; '.join(notes)}; write io: float")
        record.notes += [*notes, *joined_notes(context.model, emitted.model)]
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
        save_model(emitted.model, path)
    return emitted


def emit(
    recipe: Recipe, context: Context, plan: QuantPlan, path: Path
) -> tuple[Emitted, list[str]]:
    """Return what a run writes, with what it is made from in the metadata, and the emitter's notes.

    Args:
        recipe: names the format and kind of inputs and outputs.
        context: holds the graph and the target.
        plan: frozen.
        path: of the file, which is not written yet.
    """
    output = recipe.output
    model, io, notes = emit_model(
        context.model, plan, context.target, output.format or "qdq", output.io
    )
    write_provenance(model.metadata_props, provenance_of(recipe, context.sha256))
    return Emitted(plan, model, io, path), notes
