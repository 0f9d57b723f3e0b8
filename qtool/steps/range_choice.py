"""Choose ranges by the output of the whole network, on samples they were not estimated from."""

from collections.abc import Callable, Mapping

from qtool.calibration.collect import choose_grids
from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context

# Share by which a single estimator must lower the distance to replace the choice by value.
MARGIN = 0.05


def best_ranges(
    context: Context,
    plan: QuantPlan,
    stats: Mapping[str, Stats],
    calibrator: Calibrator,
    finish: Callable[[QuantPlan], QuantPlan],
) -> QuantPlan:
    """Return the plan with the calibrator's grids, or those of the best of its finalists.

    A finalist is one estimator for all values. Plans are compared by the distance of the network's
    first output to the float network's on ``context.holdout`` (see :meth:`Context.loss`).

    Args:
        context: holds the holdout samples.
        plan: its weights have grids.
        stats: of ``context.fit``, where the calibrator has finalists.
        calibrator: of the recipe.
        finish: constrains the scales of a plan.
    """
    first = finish(choose_grids(plan, stats, calibrator))
    if not calibrator.finalists or context.calibration.count < 2:
        return first
    plans = {
        name: finish(choose_grids(plan, stats, entry))
        for name, entry in calibrator.finalists.items()
    }
    losses = {name: context.loss(each) for name, each in plans.items()}
    by_value, best = context.loss(first), min(losses, key=lambda name: losses[name])
    distances = ", ".join(
        f"{name} {loss:.3g}" for name, loss in {"value by value": by_value, **losses}.items()
    )
    compared = f"distance to the float network on {context.holdout.count} held-out samples"
    if losses[best] < by_value * (1 - MARGIN):
        return plans[best].note(f"{best} for all values; {compared}: {distances}")
    return first.note(f"estimators value by value; {compared}: {distances}")
