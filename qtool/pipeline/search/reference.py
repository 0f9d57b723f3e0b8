"""Choose the calibration samples that networks are compared on, and the metric."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qtool.data import READERS, DataSection, Dataset, InputSpec, drop_overlap, open_dataset
from qtool.graph.compared_output import decisive_value
from qtool.graph.queries import by_name, dims
from qtool.metrics.registry import DEFAULT_METRIC, find_metric
from qtool.pipeline.context import Prepared, RunOptions
from qtool.recipe.model import Recipe
from qtool.search.effects import Reference
from qtool.steps.context import Context
from qtool.verification.accuracy import NamedMetric

# Samples that calibrate at least where half of them are left to compare networks on.
MIN_CALIBRATED = 128


def reference_of(prepared: Prepared, samples: int) -> Reference:
    """Return the calibration samples that networks are compared on, and the recipe's metric.

    Args:
        prepared: model and data.
        samples: how many, at most.
    """
    context = prepared.context
    return _reference(prepared, comparison_samples(context, samples))


def check_real_samples(prepared: Prepared) -> None:
    """Refuse synthetic calibration samples: outputs on noise say nothing about the task.

    Raises:
        RecipeError: the recipe calibrates without data.
    """
    if prepared.context.calibration.synthetic:
        raise prepared.recipe.error(
            ("calibrate",),
            "networks are compared on calibration samples, and synthetic ones are noise; give real "
            "samples, such as images: DIR",
        )


def comparison_samples(context: Context, samples: int) -> Dataset:
    """Return calibration samples: held-out ones first, then evenly spaced ones of the rest.

    Args:
        context: holds the samples.
        samples: how many, at most.
    """
    whole = context.calibration
    if samples >= whole.count or whole.count < 2:
        return whole
    index = {position: k for k, position in enumerate(whole.positions)}
    first, rest = (
        [index[position] for position in part.positions] for part in (context.holdout, context.fit)
    )
    more = max(0, samples - len(first))
    spaced = [rest[k * len(rest) // more] for k in range(more)]
    return whole.take([*first[:samples], *spaced])


def unused_reference(prepared: Prepared, samples: int) -> Reference:
    """Return samples of the calibration section that the run does not calibrate on.

    Samples that occur among the evaluation samples are left out. Where fewer than so many remain,
    those that are held out of the calibration samples follow. Calls of streams are the held-out
    ones: the states that others read were not recorded.

    Args:
        prepared: model and data.
        samples: how many, at most.
    """
    context, section = prepared.context, prepared.recipe.calibrate
    if section.loop:
        return _reference(prepared, context.holdout)
    whole = _whole(section, context.inputs, prepared.options)
    used, held_out = (set(part.positions) for part in (context.calibration, context.holdout))
    free = [k for k, position in enumerate(whole.positions) if position not in used]
    count = min(len(free), samples)
    chosen = [free[k * len(free) // count] for k in range(count)]
    own = prepared.recipe.evaluate
    overlap = section.allow_overlap or (own is not None and own.allow_overlap)
    if own is not None and not overlap:
        left, _ = drop_overlap(whole.take(chosen), prepared.evaluation.dataset)
        remaining = set(left.positions)
        chosen = [k for k in chosen if whole.positions[k] in remaining]
    rest = [k for k, position in enumerate(whole.positions) if position in held_out]
    more = rest[: max(0, samples - len(chosen))]
    return _reference(prepared, whole.take(sorted([*chosen, *more])))


def _reference(prepared: Prepared, dataset: Dataset) -> Reference:
    context = prepared.context
    metric = _metric(prepared.recipe, dataset.labels, context.model, prepared.options)
    return Reference(context, dataset, metric)


def with_unused_samples(
    recipe: Recipe, model: ir.Model, inputs: Mapping[str, InputSpec], options: RunOptions
) -> Recipe:
    """Return the recipe with so many calibration samples that as many are left to compare on.

    The accuracy of networks is compared on labelled samples of the calibration section that nothing
    was fitted to; a few of them do not show drops of a point. So half of the samples calibrate
    where fewer than a quarter would be left; but not where half are too few to calibrate on, or
    there are no labels.

    Args:
        recipe: with the samples that the user gives.
        model: the float graph.
        inputs: of the model.
        options: of the run.
    """
    section = recipe.calibrate
    if section.loop or READERS[section.reader].synthetic:
        return recipe
    whole = _whole(section, inputs, options)
    half, unused = whole.count // 2, whole.count - (section.count or whole.count)
    enough = whole.labels is None or half < MIN_CALIBRATED or unused >= half / 2
    if enough or _metric(recipe, whole.labels, model, options) is None:
        return recipe
    return recipe.model_copy(update={"calibrate": section.model_copy(update={"count": half})})


def _whole(section: DataSection, inputs: Mapping[str, InputSpec], options: RunOptions) -> Dataset:
    """Return all samples of the calibration section, whatever its count."""
    everything = section.model_copy(update={"count": None})
    return open_dataset(everything, inputs, trust_code=options.trust_code)


def _metric(
    recipe: Recipe, labels: np.ndarray | None, model: ir.Model, options: RunOptions
) -> NamedMetric | None:
    """Return the recipe's metric, or top1 for labelled classes; None where it cannot be estimated.

    Without labels that is the case for all metrics but those of class scores.
    """
    evaluate = recipe.evaluate
    named = evaluate.metric if evaluate is not None else None
    if named is None and (labels is None or not _has_classes(model)):
        return None
    name = named or DEFAULT_METRIC
    code = evaluate.code if evaluate is not None else None
    metric = find_metric(name, code, options.trust_code)
    if metric.reference or (labels is None and metric.expected is None):
        return None
    return NamedMetric(name, metric)


def _has_classes(model: ir.Model) -> bool:
    """Return whether the first output is [N, classes], as far as shapes are known.

    Class folders say nothing about another output: they are a way to store images, too.
    """
    shape = dims(by_name(model.graph)[decisive_value(model)])
    return shape is None or len([size for size in shape[1:] if size != 1]) == 1
