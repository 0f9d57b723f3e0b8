"""Diagnose a run: what its measurements say, and trials where the accuracy fell noticeably."""

import json
from dataclasses import dataclass

from qtool.diagnosis.data_rules import data_doubts
from qtool.diagnosis.diagnose import (
    diagnose,
    findings_of_results,
    lost_points,
    ranked,
    trial_samples,
)
from qtool.diagnosis.facts import Results, Settings
from qtool.diagnosis.positions import position_finding
from qtool.pipeline.context import Prepared
from qtool.pipeline.evaluate import Evaluation
from qtool.pipeline.stages import Emitted
from qtool.recipe.model import Recipe
from qtool.report.schema import Finding, Gate, Kernels, Size
from qtool.steps.guard import AppliedSteps

# Outputs of 8-bit networks have 30 to 50 dB.
NOISY_DB = 30.0


@dataclass(frozen=True)
class Diagnosis:
    """The findings of a run.

    Attributes:
        findings: those that gain most first.
        doubts: why the data may not fit the model.
    """

    findings: list[Finding]
    doubts: list[str]


def diagnosis_of(
    prepared: Prepared,
    steps: AppliedSteps,
    emitted: Emitted,
    evaluation: Evaluation,
    kernels: Kernels,
    size: Size | None,
    gates: list[Gate],
) -> Diagnosis:
    """Return the findings of a run; without a noticeable loss no network is run for them.

    Args:
        prepared: model, data and recipe.
        steps: their last plan.
        emitted: the plan that was written.
        evaluation: what was measured on the file.
        kernels: that the runtime executes.
        size: of both files.
        gates: checked.
    """
    results = Results(
        accuracy=evaluation.accuracy,
        latency=evaluation.latency,
        kernels=kernels,
        preprocessing=prepared.preprocessing,
        label_order=evaluation.label_order,
        size=size,
        gates=tuple(gates),
    )
    findings, doubts = findings_of_results(results), data_doubts(results)
    drop, context = lost_points(evaluation.accuracy, gates), prepared.context
    data = context.calibration
    if data.count < 2 or data.synthetic or not emitted.plan.grids:
        return Diagnosis(ranked(findings), doubts)
    noisy = [o.name for o in evaluation.outputs if o.compared and _is_noisy(o.sqnr_db)]
    samples = trial_samples(context, context.holdout)
    positions = position_finding(context, emitted.plan, samples, noisy)
    findings += [] if positions is None else [positions]
    if drop > 0:
        with context.cache.stage("diagnose") as record:
            findings += diagnose(
                context,
                emitted.plan,
                steps.plan,
                settings_of(prepared.recipe, context.calibration.count),
                drop,
                lambda done, total: context.progress("diagnose", done, total),
            )
            record.notes.append(
                f"findings: {len(findings)} about a loss of {drop:.2f} points; gains are measured "
                "on held-out calibration samples"
            )
    return Diagnosis(ranked(findings), doubts)


def _is_noisy(sqnr_db: float | None) -> bool:
    return sqnr_db is not None and sqnr_db < NOISY_DB


def settings_of(recipe: Recipe, samples: int) -> Settings:
    """Return what the rules need to know of a recipe.

    Args:
        recipe: resolved.
        samples: that grids were calibrated on.
    """
    layers = {
        pattern: json.dumps(widths.model_dump(exclude_none=True))
        for pattern, widths in recipe.bits.layers.items()
    }
    # With auto_above, auto was tried wherever ranges cost more than that.
    has_tried = recipe.calibrate.auto_above is not None
    return Settings(
        rewrites=recipe.rewrite or (),
        steps=tuple(step.name for step in recipe.ptq or ()),
        calibrator="auto" if has_tried else recipe.calibrate.method.name,
        samples=samples,
        layers=layers,
        removes_channels=recipe.pruning is not None and recipe.pruning.share is not None,
    )
