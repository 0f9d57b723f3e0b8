"""Refuse, before the pass, a calibrator that does not fit the grids or the model."""

from collections.abc import Iterable

import onnx_ir as ir

from qtool.calibration.class_scores import has_class_scores
from qtool.calibration.estimators.batchnorm import channel_normals
from qtool.calibration.statistics import Calibrator
from qtool.errors import RecipeError
from qtool.graph.queries import by_name
from qtool.quant.plan import QuantPlan


def check_supported(
    model: ir.Model, plan: QuantPlan, names: Iterable[str], calibrator: Calibrator
) -> None:
    """Refuse a calibrator that does not fit the requested grids or the model, before the pass.

    Args:
        model: the rewritten float graph.
        plan: annotated.
        names: the observed values.
        calibrator: from the recipe.

    Raises:
        RecipeError: it is not defined for a width, or the model has no BatchNorm or class scores
            that it needs.
    """
    values, names = by_name(model.graph), tuple(names)
    _check_widths(plan, names, calibrator)
    if calibrator.needs_batchnorm and all(channel_normals(values[n]) is None for n in names):
        raise RecipeError(
            "batchnorm reads its ranges from BatchNormalization nodes, and this model has none "
            "behind an integer layer (an export may have folded them); choose another method",
            ("calibrate", "method"),
        )
    if calibrator.needs_scores and not any(has_class_scores(values[n]) for n in names):
        raise RecipeError(
            "cross_entropy chooses the range of the network's class scores, and no output [N, C] "
            "has a grid here; write output: {io: quantized}, or choose another method",
            ("calibrate", "method"),
        )


def has_supported_widths(plan: QuantPlan, names: Iterable[str], calibrator: Calibrator) -> bool:
    """Return whether a calibrator is defined for the grids of all these values.

    Args:
        plan: annotated.
        names: the observed values.
        calibrator: any entry.
    """
    try:
        _check_widths(plan, names, calibrator)
    except RecipeError:
        return False
    return True


def _check_widths(plan: QuantPlan, names: Iterable[str], calibrator: Calibrator) -> None:
    for name in names:
        spec = plan.spec(name)
        if spec is None:
            continue
        try:
            calibrator.supports(spec)
        except ValueError as error:
            text = f'the value "{name}": {error}'
            raise RecipeError(text, ("calibrate", "method")) from error
