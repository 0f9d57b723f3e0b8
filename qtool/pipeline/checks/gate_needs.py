"""Refuse gates that a run cannot check, before minutes of work."""

from qtool.data import Dataset
from qtool.errors import RecipeError
from qtool.metrics.registry import DEFAULT_METRIC, find_metric
from qtool.pipeline.context import RunOptions
from qtool.recipe.model import Evaluate, Recipe
from qtool.recipe.sections.gates import ACCURACY_GATES
from qtool.report.gates import BASELINE_NEED
from qtool.report.report import Report


def check_gate_needs(recipe: Recipe, evaluation: Dataset, options: RunOptions) -> None:
    """Refuse gates whose measurement this run will not have.

    Args:
        recipe: with its gates and an evaluate section.
        evaluation: samples of that section.
        options: holds the baseline.

    Raises:
        RecipeError: names the gate and what it needs.
    """
    evaluate, limits = recipe.evaluate, recipe.gates.model_dump(exclude_none=True)
    if evaluate is None:
        return
    for name in ACCURACY_GATES:
        if name in limits and evaluation.labels is None and evaluate.metric is None:
            raise recipe.error(
                ("gates", name),
                f"the gate needs labels, but {evaluate.where} has none; give labels, or drop the "
                "gate",
            )
    if "min_accuracy" in limits:
        _check_direction(recipe, evaluate, options.trust_code)
    if "max_regression" in limits and options.baseline is not None:
        _check_baseline(evaluation, options.baseline)


def require_baseline(recipe: Recipe, options: RunOptions) -> None:
    """Refuse the gate on an earlier run where that run is missing.

    Only runs that check gates need it: a dry run, a scan of the layers or timed kernels do not.

    Args:
        recipe: with its gates.
        options: holds the baseline.

    Raises:
        RecipeError: names the gate and what it needs.
    """
    if recipe.gates.max_regression is not None and options.baseline is None:
        raise recipe.error(("gates", "max_regression"), f"the gate {BASELINE_NEED}; give it")


def _check_direction(recipe: Recipe, evaluate: Evaluate, trust_code: bool) -> None:
    """Refuse a smallest value of a metric that counts errors."""
    name = evaluate.metric or DEFAULT_METRIC
    if find_metric(name, evaluate.code, trust_code).lower_is_better:
        raise recipe.error(
            ("gates", "min_accuracy"),
            f"{name} counts errors, so less is better and a minimum says nothing; use max_drop",
        )


def _check_baseline(evaluation: Dataset, baseline: Report) -> None:
    """Refuse a baseline that was evaluated on other samples."""
    part = baseline.data.evaluation
    if part is None or part.sha256 != evaluation.digest:
        raise RecipeError(
            "--baseline: that run was evaluated on other samples than this recipe's, so "
            "gates.max_regression cannot compare them; expected a run with the same evaluate "
            "section"
        )
