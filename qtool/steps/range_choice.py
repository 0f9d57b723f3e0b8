"""Choose ranges by the output of the whole network, on samples they were not estimated from."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from qtool.calibration.collect import choose_grids
from qtool.calibration.statistics import Calibrator, Stats
from qtool.calibration.supported import has_supported_widths
from qtool.graph.content_digest import content_digest
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_archive import plan_digest
from qtool.quant.primitives import QuantParams
from qtool.steps.context import Context

# Share by which another choice must lower the distance to replace the one before, and standard
# errors of the difference sample by sample that it must lower it by: a few samples decide much.
MARGIN, DEVIATIONS = 0.05, 2.0

# Losses that are held for the trials of a search, a few hundred bytes each.
MOST_LOSSES = 10_000


def _unchanged(plan: QuantPlan) -> QuantPlan:
    return plan


def best_ranges(
    context: Context,
    plan: QuantPlan,
    stats: Mapping[str, Stats],
    calibrator: Calibrator,
    finish: Callable[[QuantPlan, Calibrator], QuantPlan],
    constrain: Callable[[QuantPlan], QuantPlan] = _unchanged,
) -> QuantPlan:
    """Return the plan with the calibrator's grids, or those of the best of its finalists.

    A finalist is one estimator for all values. Plans are compared by the distance of the network's
    first output to the float network's on ``context.holdout`` (see :func:`range_losses`). Single
    values of the best plan then take the grid of another one where that lowers the distance.

    Args:
        context: holds the holdout samples.
        plan: its weights have grids.
        stats: of ``context.fit``, where the calibrator has finalists.
        calibrator: of the recipe.
        finish: completes the ranges of a plan by an estimator, and constrains its scales.
        constrain: constrains the scales after one range has changed.
    """
    first = finish(choose_grids(plan, stats, calibrator), calibrator)
    if not calibrator.finalists or context.calibration.count < 2:
        return first
    plans = {"value by value": first} | {
        name: finish(choose_grids(plan, stats, entry), entry)
        for name, entry in calibrator.finalists.items()
        if has_supported_widths(plan, stats, entry)
    }
    losses = {name: range_losses(context, each) for name, each in plans.items()}
    nearer = [name for name in losses if is_nearer(losses[name], losses["value by value"])]
    best = min(nearer, key=lambda name: losses[name].mean(), default="value by value")
    distances = ", ".join(f"{name} {loss.mean():.3g}" for name, loss in losses.items())
    compared = f"distance to the float network on {context.holdout.count} held-out samples"
    title = "estimators value by value" if plans[best] is first else f"{best} for all values"
    chosen = plans[best].note(f"{title}; {compared}: {distances}")
    grids = dict.fromkeys(plan.grid_of[name] for name in stats)
    others = _alternatives(chosen, plans, grids)[: calibrator.trials]
    return _refined(context, chosen, losses[best], others, constrain)


def range_losses(context: Context, plan: QuantPlan) -> np.ndarray:
    """Return what the ranges of activations cost each sample of ``context.holdout``.

    Weights stay unrounded: steps repair what they cost, and it would hide what the ranges cost.
    Trials of a search that differ in weights alone compute it once.

    Args:
        context: holds the holdout samples.
        plan: every grid is calibrated.

    Returns:
        float64 [samples], see :meth:`Context.losses`.
    """

    def key() -> str:
        digest = plan_digest(plan.with_float_weights())
        return "\0".join((content_digest(context.model), context.holdout.digest, digest))

    return context.cache.remembered(
        "range losses", key, lambda: context.losses(plan, float_weights=True), MOST_LOSSES
    )


def is_nearer(losses: np.ndarray, before: np.ndarray) -> bool:
    """Return whether distances of samples are lower by more than chance, [samples] each.

    mean(d) > DEVIATIONS * std(d) / sqrt(samples)   with d = before - losses
    """
    gains = before - losses
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    least = max(MARGIN * before.mean(), DEVIATIONS * error)
    return bool(gains.mean() > least)


def _alternatives(
    chosen: QuantPlan, plans: Mapping[str, QuantPlan], grids: Mapping[str, None]
) -> list[tuple[str, str, QuantParams]]:
    """Return (grid, estimator, its grid) of other plans, most different scales of a value first.

    Where all estimators agree, the choice does not matter.
    """
    ordered: list[tuple[float, list[tuple[str, str, QuantParams]]]] = []
    for grid in grids:
        current = chosen.grids[grid]
        if not isinstance(current, QuantParams):
            continue
        others: dict[bytes, tuple[str, str, QuantParams]] = {}
        for name, plan in plans.items():
            other = plan.grids[grid]
            if isinstance(other, QuantParams) and _key(other) != _key(current):
                others.setdefault(_key(other), (grid, name, other))
        scales = [float(p.scale.max()) for p in (current, *(o[2] for o in others.values()))]
        ordered.append((min(scales) / max(scales), list(others.values())))
    return [other for _, group in sorted(ordered, key=lambda item: item[0]) for other in group]


def _key(params: QuantParams) -> bytes:
    return params.scale.tobytes() + params.zero_point.tobytes()


def _refined(
    context: Context,
    plan: QuantPlan,
    losses: np.ndarray,
    alternatives: list[tuple[str, str, QuantParams]],
    constrain: Callable[[QuantPlan], QuantPlan],
) -> QuantPlan:
    """Return the plan after coordinate descent over single ranges."""
    start, changed = losses.mean(), dict[str, str]()
    for number, (grid, name, params) in enumerate(alternatives, 1):
        trial = constrain(replace(plan, grids={**plan.grids, grid: params}))
        errors = range_losses(context, trial)
        if is_nearer(errors, losses):
            plan, losses, changed[grid] = trial, errors, name
        context.progress("ranges", number, len(alternatives))
    if not changed:
        return plan
    listed = ", ".join(f"{grid} ({name})" for grid, name in changed.items())
    return plan.note(
        f"single ranges by the same distance, {start:.3g} -> {losses.mean():.3g}: {listed}"
    )
