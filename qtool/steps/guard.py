"""Apply steps to a plan: each is timed, cached, compared on holdout samples, and reported."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qtool.errors import RecipeError
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_archive import load_plan_archive, plan_digest, save_plan_archive
from qtool.report.schema import PtqStep, TrainingPart
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageRecord
from qtool.steps.step import Step, StepResult


@dataclass(frozen=True)
class NamedStep:
    """A step with the name and the options that the recipe gives it.

    Attributes:
        name: of the registry; names the stage in the report.
        step: the entry, built with its options.
        key: the options as text; results are cached by it.
    """

    name: str
    step: Step
    key: str = ""


@dataclass(frozen=True)
class AppliedSteps:
    """Outcome of all steps of a run.

    Attributes:
        plan: the last plan that was selected.
        rows: one for each step, for the report.
        training: of the step that trained, or None.
    """

    plan: QuantPlan
    rows: tuple[PtqStep, ...] = ()
    training: TrainingPart | None = None


def apply_steps(steps: Sequence[NamedStep], plan: QuantPlan, context: Context) -> AppliedSteps:
    """Apply steps in order; each starts from the best plan so far.

    Args:
        steps: in the order of the recipe.
        plan: every grid is calibrated.
        context: what the run reads.

    Raises:
        QtoolError: a step cannot use the model or the data.
    """
    applied = AppliedSteps(plan)
    for named in steps:
        result, row = guarded(named, applied.plan, context)
        applied = replace(
            applied,
            plan=result.plan,
            rows=(*applied.rows, *result.rows, *([] if row is None else [row])),
            training=result.training or applied.training,
        )
    return applied


def guarded(
    named: NamedStep, plan: QuantPlan, context: Context
) -> tuple[StepResult, PtqStep | None]:
    """Apply one step, and drop its result where ``holdout`` samples do not confirm it.

    The network's first output is compared with the float network's before and after the step
    (:meth:`Context.loss`) and must fall, or fall below the share ``at_most`` of a step that has
    this option. A step whose ``guarded`` is False decides for itself.

    Returns:
        The result whose plan is to be used, and the row of the report (None if not guarded).
    """
    with context.cache.stage(named.name) as record:
        start = time.perf_counter()
        if not named.step.guarded:
            result = _masked(named.step(plan, context))
            record.notes += result.notes
            return result, None
        digest, before = plan_digest(plan), context.loss(plan)
        result = _cached(named, plan, digest, context, record)
        unchanged = plan_digest(result.plan) == digest
        after = before if unchanged else context.loss(result.plan)
        share = getattr(named.step, "at_most", 1.0)
        selected = after < before * share
        row = PtqStep(
            step=named.name,
            before=round(before, 8),
            after=round(after, 8),
            kept=selected,
            seconds=round(time.perf_counter() - start, 3),
            metrics=dict(result.metrics) or None,
        )
        verdict = "it changes nothing" if unchanged else _verdict(row, share, context.holdout.count)
        record.notes += [*result.notes, verdict]
        if not selected:  # its blocks are not in the plan either
            rows = tuple(row.model_copy(update={"kept": False}) for row in result.rows)
            result = replace(result, plan=plan, rows=rows)
        return result, row


def _masked(result: StepResult) -> StepResult:
    """Return the result with pruned weights at 0, whatever the step made of them."""
    return replace(result, plan=result.plan.masked())


def _verdict(row: PtqStep, share: float, samples: int) -> str:
    change = f"distance to the float output {row.before:.4g} -> {row.after:.4g}"
    better = row.before is not None and row.after is not None and row.after < row.before
    outcome = "no better: rolled back" if not better else f"not below {share:.0%}: rolled back"
    outcome = "kept" if row.kept else outcome
    return f"{change} on {samples} holdout samples; {outcome}"


def _cached(
    named: NamedStep, plan: QuantPlan, digest: str, context: Context, record: StageRecord
) -> StepResult:
    """Return the step's result, of an earlier run where one was made from the same parts."""
    parts = (*context.cache_parts, named.key, digest)

    def save(result: StepResult, path: Path) -> None:
        rows = [row.model_dump(exclude_none=True) for row in result.rows]
        extra = {"notes": list(result.notes), "metrics": dict(result.metrics), "rows": rows}
        save_plan_archive(result.plan, path, json.dumps(extra))

    def load(path: Path) -> StepResult:
        loaded, extra = load_plan_archive(path)
        words = json.loads(extra)
        rows = tuple(PtqStep(**row) for row in words["rows"])
        return StepResult(loaded, tuple(words["notes"]), words["metrics"], rows=rows)

    return context.cache.cached(
        record, named.name, parts, lambda: _masked(named.step(plan, context)), save, load
    )


def check_needs(steps: Sequence[NamedStep], available: frozenset[str]) -> None:
    """Refuse steps whose requirements the run does not meet, before any work.

    Args:
        steps: of the recipe.
        available: requirements that are met, names from ``step.NEEDS``.

    Raises:
        RecipeError: names the step and what it needs.
    """
    for named in steps:
        missing = sorted(named.step.needs - available)
        if missing:
            raise RecipeError(f"ptq: {named.name} needs {', '.join(missing)}; leave the step out")
