"""Change layers in order, each behind a guard; a run that was stopped goes on from the last one."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from qtool.quant.plan import QuantPlan, Site
from qtool.quant.plan_archive import load_plan_archive, plan_digest, save_plan_archive
from qtool.report.schema import PtqStep
from qtool.steps.context import Context
from qtool.steps.layerwise import LayerwiseRun
from qtool.steps.row_weights import row_power, row_weights, typical_power
from qtool.steps.stage_cache import StageRecord
from qtool.steps.step import StepResult

Outcome = tuple[QuantPlan, PtqStep | None]
"""The changes of a layer, and its row; None where there is nothing to change."""


class LayerGuard:
    """Keep the change of a layer only where the error of its output on ``holdout`` falls.

    The layers before it are as they were selected. Each layer's changes are stored as soon as they
    are made, so that a run that was stopped makes only those that are missing; the values in front
    of every layer are computed anew.

    >>> with LayerwiseRun(context, plan, "gptq", holdout=True) as run:      # doctest: +SKIP
    ...     guard = LayerGuard(run, context, "gptq", repr(step))
    ...     for site in run.sites():
    ...         guard.visit(site, lambda: rounded(run, site))

    Attributes:
        rows: for the report, one for each layer with something to change.
    """

    def __init__(self, run: LayerwiseRun, context: Context, step: str, options: str) -> None:
        """Prepare a pass over all layers.

        Args:
            run: reads the ``holdout`` samples.
            context: holds the cache, and what its keys are made from.
            step: name, for the report and the cache.
            options: of the step, as text. With them, the data and the plan at the start, a layer
                before another one always has the same result, which the key leaves out.
        """
        self._run, self._context, self._step = run, context, step
        self._parts = (*context.cache_parts, options, plan_digest(run.plan))
        self._messages: list[str] = []
        self.rows: list[PtqStep] = []

    def visit(self, site: Site, change: Callable[[], QuantPlan | None]) -> None:
        """Change a layer in the plan of the run, or leave it as it is.

        Args:
            site: the one that ``run.sites()`` yielded last.
            change: returns the plan of the run with this layer changed; None where nothing is to be
                changed. It is not called where an earlier run stored what it returned.
        """
        name, record = f"{self._step}-layer", StageRecord()
        cache, parts = self._context.cache, (*self._parts, site.name)
        changes, row = cache.cached(
            record, name, parts, lambda: self._made(site, change), _save, _load
        )
        cache.remove_with_whole(name, parts)
        self._messages += record.notes
        if row is not None:
            self._run.plan = self._run.plan.with_changes(changes)
            self.rows.append(row)

    @property
    def changed(self) -> int:
        """Return the number of layers that are not as they were."""
        return sum(row.kept for row in self.rows)

    def result(self, notes: Sequence[str], metrics: Mapping[str, float]) -> StepResult:
        """Return the plan of the run as the result of the step, with the rows of its layers.

        Args:
            notes: for the report; those of the guard follow.
            metrics: of the step.
        """
        rows = tuple(self.rows)
        return StepResult(self._run.plan, (*notes, *self.notes), metrics, rows=rows)

    @property
    def notes(self) -> list[str]:
        """Sentences for the report."""
        worse = sum(not row.kept and row.after > row.before for row in self.rows)
        text = f"{worse} of {len(self.rows)} layers left as they were: no better on holdout samples"
        return [*([text] if worse else []), *self._messages]

    def _made(self, site: Site, change: Callable[[], QuantPlan | None]) -> Outcome:
        start, before = time.perf_counter(), self._run.plan
        plan = change()
        if plan is None or plan is before:
            return QuantPlan(), None
        old, new = relative_errors(self._run, site, (before, plan))
        row = PtqStep(
            step=self._step,
            block=site.name,
            before=round(old, 8),
            after=round(new, 8),
            kept=new < old,
            seconds=round(time.perf_counter() - start, 3),
        )
        return (plan.changes_since(before) if row.kept else QuantPlan()), row


def relative_errors(run: LayerwiseRun, site: Site, plans: Sequence[QuantPlan]) -> list[float]:
    """Return sum w (y_q - y)^2 / sum w y^2 of a layer's output y on ``holdout``, for each plan.

    y is the output before the activation function, y_q that of the quantized layer, and w of
    positions, see :func:`qtool.steps.row_weights.row_weights`.

    Args:
        run: reads the ``holdout`` samples.
        site: the one that ``run.sites()`` yielded last.
        plans: which differ in this layer alone.
    """
    axis, typical = 1 if site.op == "Conv" else -1, None
    sums = np.zeros(1 + len(plans))
    for y_float, outputs in run.held_out(site, plans):
        power = row_power(y_float, axis)
        typical = typical_power(power) if typical is None else typical
        weights = row_weights(power, typical)
        rows = (power, *(row_power(y - y_float, axis) for y in outputs))
        sums += [float((weights * each).double().sum()) for each in rows]
    return [float(error) / (float(sums[0]) or 1.0) for error in sums[1:]]


def _save(outcome: Outcome, path: Path) -> None:
    changes, row = outcome
    extra = None if row is None else row.model_dump(exclude_none=True)
    save_plan_archive(changes, path, json.dumps(extra))


def _load(path: Path) -> Outcome:
    changes, extra = load_plan_archive(path)
    row = json.loads(extra)
    return changes, None if row is None else PtqStep(**row)
