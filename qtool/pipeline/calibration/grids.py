"""Estimate the grids of activations in one pass, and those of weights."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from qtool.calibration import CALIBRATORS, Auto
from qtool.calibration.batch_size import batch_size, held_elements, pass_elements
from qtool.calibration.collect import choose_grids, observed_values
from qtool.calibration.statistics import Calibrator, Stats
from qtool.calibration.supported import check_supported
from qtool.calibration.synthetic import BATCH, check_batchnorm, collect_synthetic
from qtool.calibration.weight_ranges import WeightRange, check_weights_supported
from qtool.data import Dataset
from qtool.errors import RecipeError
from qtool.graph.compared_output import class_count
from qtool.pipeline.annotate_stage import make_plan
from qtool.pipeline.calibration.shares import CalibrationShares
from qtool.pipeline.checks.calibration_data import half_notes, sample_notes, value_notes
from qtool.pipeline.input_checks import has_class_labels
from qtool.quant.plan import QuantPlan, same_structure
from qtool.quant.plan_archive import load_plan_archive, save_plan_archive
from qtool.quant.plan_io import read_plan
from qtool.recipe.model import Recipe
from qtool.steps.context import Context
from qtool.steps.islands import choose_islands, island_reasons, with_grids_of
from qtool.steps.output_error import widen_by_output
from qtool.steps.range_choice import best_ranges, is_nearer, range_losses
from qtool.weights import SCHEMES
from qtool.weights.estimated import EstimatedRanges
from qtool.weights.grids import weight_grids
from qtool.weights.int16_saturation import safe_scales
from qtool.weights.scale_constraints import constrain_plan_scales
from qtool.weights.scheme import WeightScheme


def calibrated(recipe: Recipe, context: Context, plan: QuantPlan) -> QuantPlan:
    """Return the plan with the grids of all activations and weights, cached between runs.

    Args:
        recipe: names the calibrator and the scheme.
        context: holds the graph and the calibration samples.
        plan: without grids.

    Raises:
        DataError: a value, weight or bias is NaN or infinite, or there is no sample.
        RecipeError: an activation gets a grid, and nothing to calibrate with is named.
    """
    options = recipe.calibrate.synthetic
    names = observed_values(context.model, plan)
    if options is not None and options.ranges == "none" and names:
        raise recipe.error(
            ("calibrate",),
            f'needed: the activation "{names[0]}" gets a grid; name samples, or write '
            "synthetic: batchnorm",
        )
    with context.cache.stage("calibrate") as record:
        record.notes += data_notes(recipe, context, plan)
        parts = (
            context.sha256,
            str(dict(context.inputs)),
            context.calibration.digest,
            recipe.calibrate.model_dump_json(),
            recipe.bits.model_dump_json(),
            str(recipe.rewrite),
            repr(context.target),
            repr((plan.sites, plan.grid_of, plan.weight_only)),
            context.placement,
            str(context.seed),  # chooses the samples that are held out
        )
        return context.cache.cached(
            record,
            "grids",
            parts,
            lambda: _chosen_grids(recipe, context, plan),
            save_plan_archive,
            lambda path: load_plan_archive(path)[0],
        )


def _chosen_grids(recipe: Recipe, context: Context, plan: QuantPlan) -> QuantPlan:
    """Return the plan with grids by the recipe's method, or by ``auto`` where those cost too much.

    What ranges cost: :func:`qtool.steps.range_choice.range_losses`.
    """
    scheme = weight_scheme(recipe, plan)
    calibrator = recipe.calibrate.method.build(CALIBRATORS)
    first = make_grids(context, plan, calibrator, scheme)
    limit = recipe.calibrate.auto_above
    comparable = context.calibration.count > 1 and not context.calibration.synthetic
    if (
        limit is None
        or calibrator.finalists
        or not comparable
        or not observed_values(context.model, plan)
    ):
        return first
    before = range_losses(context, first)
    if before.mean() <= limit:
        return first
    second = make_grids(context, plan, Auto(single_ranges=0), scheme)
    after = range_losses(context, second)
    name = recipe.calibrate.method.name
    distances = (
        f"distance to the float network on {context.holdout.count} held-out samples, weights "
        f"unrounded: {before.mean():.3g} with ranges by {name}, {after.mean():.3g} by auto"
    )
    if is_nearer(after, before):
        return second.note(f"{distances}; auto is used")
    return first.note(f"{distances}, not significantly nearer; {name} is used")


def data_notes(recipe: Recipe, context: Context, plan: QuantPlan) -> list[str]:
    """Return notes on the calibration samples; none where they are made up, or nothing reads them.

    Args:
        recipe: its metric says whether labels are classes.
        context: holds the graph and the calibration samples.
        plan: annotated.
    """
    if recipe.calibrate.synthetic is not None or not observed_values(context.model, plan):
        return []
    metric = recipe.evaluate.metric if recipe.evaluate is not None else None
    are_classes = metric is None or has_class_labels(metric)
    return sample_notes(context.calibration, class_count(context.model) if are_classes else 0)


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
    if context.calibration.synthetic:
        check_batchnorm(model, observed)
    check_supported(model, plan, observed, calibrator)
    if context.calibration.synthetic:
        return _grids_without_data(context, plan, calibrator, observed)
    data = _estimation_data(context, calibrator)
    rows = context.fixed_batch or batch_size(pass_elements(model, observed), data.count)
    total, done = data.count, 0

    def on_batch(rows: int) -> None:
        nonlocal done
        done = min(done + rows, total)
        context.progress("calibrate", done, total)

    held_out = data is not context.calibration
    shares = CalibrationShares(
        observed, held_out, rows, calibrator.needs_histogram, calibrator.smoothing
    )
    observations = shares.shared(context, on_batch)
    stats = observations.stats
    for text in (
        *value_notes(model, stats),
        *half_notes(stats, observations.early, observations.early_samples, data.count),
    ):
        plan = plan.note(text)

    def with_islands(base: QuantPlan, islands: Mapping[str, str]) -> QuantPlan | None:
        candidate = with_grids_of(base, make_plan(context, islands), stats, calibrator)
        return constrain_scales(context, candidate) if candidate is not None else None

    best = grids_from_statistics(context, plan, stats, calibrator)
    return choose_islands(context, best, with_islands)


def grids_from_statistics(
    context: Context, plan: QuantPlan, stats: Mapping[str, Stats], calibrator: Calibrator
) -> QuantPlan:
    """Return the plan with the grids that an estimator computes of activations.

    Args:
        context: holds the graph and the calibration samples.
        plan: its weights have grids.
        stats: of ``context.fit`` where the estimator has finalists, else of all samples.
        calibrator: estimates the grids.
    """

    def constrain(chosen: QuantPlan) -> QuantPlan:
        return constrain_scales(context, chosen)

    def finish(chosen: QuantPlan, entry: Calibrator) -> QuantPlan:
        if entry.by_output:
            with closing(_estimation_batches(context, tuple(stats), calibrator)) as batches:
                chosen = widen_by_output(context.model, chosen, stats, batches, context.threads)
        return constrain(chosen)

    return best_ranges(context, plan, stats, calibrator, finish, constrain)


def _estimation_data(context: Context, calibrator: Calibrator) -> Dataset:
    """Return the samples that ranges are estimated from: all, or those not held out."""
    use_holdout = bool(calibrator.finalists) and context.calibration.count > 1
    return context.fit if use_holdout else context.calibration


def _grids_without_data(
    context: Context, plan: QuantPlan, calibrator: Calibrator, observed: tuple[str, ...]
) -> QuantPlan:
    """Return the plan with grids by the statistics that BatchNorm states."""
    data, done = context.calibration, 0

    def on_batch(rows: int) -> None:
        nonlocal done
        done = min(done + rows, data.count)
        context.progress("calibrate", done, data.count)

    fixed = context.fixed_batch
    calls = data.calls(fixed or BATCH, fixed is not None)
    batches = ({n: b[n] for n in context.inputs} for b, _ in calls)
    smoothing = calibrator.smoothing
    stats = collect_synthetic(context.model, observed, batches, on_batch, smoothing)
    return constrain_scales(context, choose_grids(plan, stats, calibrator))


def _estimation_batches(
    context: Context, observed: tuple[str, ...], calibrator: Calibrator
) -> Generator[Mapping[str, np.ndarray], None, None]:
    """Yield the samples of the estimation, as many at a time as fit in memory."""
    data, fixed = _estimation_data(context, calibrator), context.fixed_batch
    rows = fixed or batch_size(held_elements(context.model, observed), data.count)
    for batch, _ in data.calls(rows, fixed is not None):
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
        islands = island_reasons(earlier)
        plan = make_plan(context, islands) if islands else plan
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
