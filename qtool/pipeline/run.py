"""Run the stages in their order: load, rewrite, annotate, calibrate, steps, freeze, emit, measure.

A recipe chooses steps within a stage, never the order.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from qtool.pipeline.build_report import build_report
from qtool.pipeline.checks.gate_needs import require_baseline
from qtool.pipeline.context import Prepared, RunOptions
from qtool.pipeline.estimate.memory import MemoryPart, check_memory, training_part
from qtool.pipeline.estimate.run_time import announce_estimate
from qtool.pipeline.evaluate import Evaluator
from qtool.pipeline.folders.run_folder import open_cache, run_folder, write_run
from qtool.pipeline.latency.measure import with_runtimes
from qtool.pipeline.latency.needs import require_runtimes
from qtool.pipeline.prepare import prepare
from qtool.pipeline.processes.worker import AssistingProcess, assist, finish
from qtool.pipeline.pruning.checks import check_pruning_request
from qtool.pipeline.search.requested import check_spread
from qtool.pipeline.search.resolve import resolve_search
from qtool.pipeline.stages import freeze_and_emit, quantize, rewrite
from qtool.pipeline.training.checks import (
    check_early,
    check_rewrites,
    has_restricted_scales,
    recipe_widths,
)
from qtool.pipeline.training.stage import Training
from qtool.qat import distributed
from qtool.quant.plan import QuantPlan
from qtool.recipe.choice import Choice, read_choice
from qtool.recipe.model import Recipe
from qtool.recipe.sections.qat import Qat, with_calibration_samples
from qtool.report.report import Report
from qtool.report.schema import ModelPart
from qtool.runtime.memory import memory_limit
from qtool.steps.guard import NamedStep
from qtool.verification.layers.table import model_part, total_macs


def run_ptq(recipe: Recipe, out: Path, options: RunOptions | None = None) -> Report | None:
    """Quantize a model after training and write the run folder.

    Of several processes that torchrun started, the first does this and returns the report; the
    others calibrate and evaluate their shares of the samples and return None.

    Args:
        recipe: what to do, paths absolute.
        out: the run folder; made when missing.
        options: seed, device, threads, processes of a search and so on; None: the defaults.

    Raises:
        QtoolError: anything that is the user's to fix; then nothing was written.
    """
    return _shared(recipe, out, options or RunOptions(), train=False)


def run_qat(recipe: Recipe, out: Path, options: RunOptions | None = None) -> Report | None:
    """Train a model with quantization in the loop and write the run folder.

    Of several processes that torchrun started, the first does this; the others share calibration,
    training and evaluation, and return None.

    Args:
        recipe: what to do; its ``qat`` section says how to train.
        out: the run folder.
        options: as for :func:`run_ptq`.

    Raises:
        QtoolError: anything that is the user's to fix; then nothing was written.
    """
    return _shared(_with_training_defaults(recipe), out, options or RunOptions(), train=True)


def _shared(recipe: Recipe, out: Path, options: RunOptions, train: bool) -> Report | None:
    """Run in this process, or assist the first of several."""
    check_spread(recipe, options)
    options = options.for_spread()
    with options.computing(), distributed.joined(options.device), memory_limit(recipe.memory):
        if distributed.rank() == 0:
            check_pruning_request(recipe, train)
            check_rewrites(recipe, train)
            if train:
                check_early(recipe, options)
            report = _run(recipe, out, options, train)
            finish()
            return report
        cache = open_cache(out, options)  # it holds models that the first process exported
        # Where the first process ended early, it says why.
        with suppress(distributed.ProcessLost):
            assist(AssistingProcess(recipe, cache, options))
        return None


def _with_training_defaults(recipe: Recipe) -> Recipe:
    """Return the recipe with the values of its quantizer where it has none.

    These are the scheme of weights, the calibrator, and what the paper trains with (schedule,
    rate); with scales of a fixed form BatchNorm stays folded. Where training does not start from
    the codes of default steps, these are left out; steps that the recipe names run in any case.
    Without a ``qat`` section the samples of ``calibrate`` train.
    """
    from qtool.qat.quantizers import QAT_QUANTIZERS

    if recipe.qat is None and recipe.calibrate.synthetic is None:
        plain = with_calibration_samples({}, recipe.calibrate.model_dump(exclude_none=True))
        recipe = recipe.model_copy(update={"qat": Qat.model_validate(plain)})
    if recipe.qat is None:
        return recipe if recipe.ptq is not None else recipe.model_copy(update={"ptq": ()})
    entry, bits = QAT_QUANTIZERS[recipe.qat.quantizer.name], recipe.bits
    changes: dict[str, Any] = {}
    if not entry.starts_from_codes and recipe.ptq is None:
        changes["ptq"] = ()
    if "scheme" not in bits.model_fields_set:
        changes["bits"] = bits.model_copy(update={"scheme": Choice(name=entry.scheme)})
    if entry.calibrator is not None and "method" not in recipe.calibrate.model_fields_set:
        method = read_choice(entry.calibrator, "calibrators", recipe.qat.quantizer.name)
        changes["calibrate"] = recipe.calibrate.model_copy(update={"method": method})
    defaults = dict(entry.training_defaults(recipe_widths(recipe)))
    if has_restricted_scales(recipe):
        defaults["batchnorm"] = "folded"
    absent = {k: v for k, v in defaults.items() if k not in recipe.qat.model_fields_set}
    changes["qat"] = recipe.qat.model_copy(update=absent)
    return recipe.model_copy(update=changes)


def _run(recipe: Recipe, out: Path, options: RunOptions, train: bool) -> Report:
    require_baseline(recipe, options)
    require_runtimes(recipe)
    with run_folder(out, options) as (cache, scratch):
        recipe, search = resolve_search(recipe, cache, options, scratch)
        prepared = prepare(recipe, cache, options)
        recipe, context = prepared.recipe, prepared.context
        float_model = rewritten(prepared)
        training: tuple[NamedStep, ...] = ()
        more: tuple[MemoryPart, ...] = ()
        if train:
            step = Training.open(prepared)
            recipe, training = step.resolved, (NamedStep("qat", step),)
            more = (training_part(prepared, min(step.section.batch, step.train_data.count)),)

        def announce(plan: QuantPlan) -> None:
            check_memory(prepared, plan, more)
            if not train:  # training shows its own time
                announce_estimate(prepared, plan)

        steps = quantize(recipe, context, options.plan_file, training, announce)
        emitted = freeze_and_emit(recipe, context, steps.plan, scratch / recipe.output.file)
        dynamic = bool(emitted.plan.dynamic)
        evaluation = Evaluator(prepared, emitted.path, scratch, emitted, dynamic).run()
        evaluation = with_runtimes(prepared, emitted.path, evaluation, scratch)
        report = build_report(prepared, float_model, steps, emitted, evaluation)
        report = report.model_copy(update={"search": search})
        write_run(recipe, emitted, report, out)
    return report


def rewritten(prepared: Prepared) -> ModelPart:
    """Rewrite the graph in place; return its counts before convolutions change their form."""
    loaded, context = prepared.loaded, prepared.context
    part = model_part(loaded.shown, loaded.sha256, loaded.model)

    def on_folded() -> None:
        nonlocal part
        part = part.model_copy(update={"macs": total_macs(loaded.model) or None})

    with context.cache.stage("rewrite") as record:
        record.notes += rewrite(prepared.recipe, context, on_folded)
    return part
