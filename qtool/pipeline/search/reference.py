"""Choose the calibration samples that networks are compared on, and the metric."""

from qtool.data import Dataset, drop_overlap, open_dataset
from qtool.graph.queries import by_name, dims
from qtool.metrics.registry import DEFAULT_METRIC, find_metric
from qtool.pipeline.context import Prepared
from qtool.search.effects import Reference
from qtool.steps.context import Context
from qtool.verification.accuracy import NamedMetric

# Samples below which no more are taken from calibration to compare networks on.
MIN_CALIBRATED = 128


def reference_of(prepared: Prepared, samples: int) -> Reference:
    """Return the calibration samples that networks are compared on, and the recipe's metric.

    Args:
        prepared: model and data.
        samples: how many, at most.
    """
    context = prepared.context
    return Reference(context, comparison_samples(context, samples), _metric(prepared))


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
        return Reference(context, context.holdout, _metric(prepared, context.holdout))
    whole = _whole(prepared)
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
    dataset = whole.take(sorted([*chosen, *rest[: max(0, samples - len(chosen))]]))
    return Reference(context, dataset, _metric(prepared, dataset))


def fewer_to_calibrate(prepared: Prepared) -> int | None:
    """Return a number of calibration samples that leaves as many to compare networks on.

    The accuracy of networks is compared on labelled samples of the calibration section that nothing
    was fitted to; a few of them do not show drops of a point.

    Args:
        prepared: model and data.

    Returns:
        Half of the samples; None where enough are unused, none has a label, or half is too few to
        calibrate on.
    """
    context, section = prepared.context, prepared.recipe.calibrate
    if section.loop or _metric(prepared) is None:
        return None
    whole = _whole(prepared)
    half, unused = whole.count // 2, whole.count - context.calibration.count
    return half if half >= MIN_CALIBRATED and unused < half / 2 else None


def _whole(prepared: Prepared) -> Dataset:
    """Return all samples of the calibration section, whatever its count."""
    return open_dataset(
        prepared.recipe.calibrate.model_copy(update={"count": None}),
        prepared.context.inputs,
        trust_code=prepared.options.trust_code,
    )


def _metric(prepared: Prepared, dataset: Dataset | None = None) -> NamedMetric | None:
    """Return the recipe's metric where the samples have labels; else top1 for classes."""
    evaluate = prepared.recipe.evaluate
    labels = (dataset or prepared.context.calibration).labels
    named = evaluate.metric if evaluate is not None else None
    if labels is None or (named is None and not _has_classes(prepared.context)):
        return None
    name = named or DEFAULT_METRIC
    code = evaluate.code if evaluate is not None else None
    metric = find_metric(name, code, prepared.context.trust_code)
    return None if metric.reference else NamedMetric(name, metric)


def _has_classes(context: Context) -> bool:
    """Return whether the first output is [N, classes], as far as shapes are known.

    Class folders say nothing about another output: they are a way to store images, too.
    """
    shape = dims(by_name(context.model.graph)[context.first_output])
    return shape is None or len([size for size in shape[1:] if size != 1]) == 1
