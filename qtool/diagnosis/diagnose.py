"""Turn suspicions into findings: each is tried on held-out samples and kept if it gains points."""

from collections.abc import Callable
from dataclasses import replace

from qtool.data import Dataset
from qtool.diagnosis.data_rules import data_findings, latency_finding, size_finding
from qtool.diagnosis.facts import Facts, Results, Settings
from qtool.diagnosis.measurements import measure
from qtool.diagnosis.replacements import unrounded
from qtool.diagnosis.rules import RULES, Rule
from qtool.diagnosis.trials import Trials
from qtool.quant.plan import QuantPlan
from qtool.report.gates import output_gates
from qtool.report.schema import Accuracy, Finding, Gate
from qtool.steps.context import Context
from qtool.verification.layers.table import total_macs

# Points of drop, and agreement in %, from which the accuracy is diagnosed without a failed gate.
NOTICEABLE_DROP = 0.5
LOW_AGREEMENT = 95.0
# Points, and share of the drop, that a change must gain in its trial to be reported.
MIN_GAIN = 0.1
MIN_SHARE = 0.1
# Share of the gain of a part of the network from which a cause explains it.
CAUSE = 0.8
# Share of the drop from which removed channels are named.
REMOVED = 0.3
# Multiply-accumulates of all samples of one trial, and the bounds of their number.
TRIAL_MACS = 8e9
MIN_SAMPLES, MAX_SAMPLES = 16, 64

BOUND = "the gain is the most that the lines can reach, measured with exact values"


def lost_points(accuracy: Accuracy | None, gates: list[Gate]) -> float:
    """Return the points that are worth a diagnosis; 0 where the accuracy did not fall noticeably.

    Without labels these are the points of agreement with the float model that are missing.

    Args:
        accuracy: of both files.
        gates: checked.
    """
    if accuracy is None:
        return 0.0
    failed = any(not gate.passed for gate in output_gates(gates))
    if accuracy.drop is not None:
        lost = accuracy.drop
        return lost if lost > NOTICEABLE_DROP or (failed and lost > 0) else 0.0
    if accuracy.agreement is None:
        return 0.0
    missing = 100 - accuracy.agreement
    return missing if accuracy.agreement < LOW_AGREEMENT or failed else 0.0


def diagnose(
    context: Context,
    plan: QuantPlan,
    calibrated: QuantPlan,
    settings: Settings,
    drop: float,
    on_rule: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Return the findings about the plan, those that gain most first.

    Args:
        context: the float network and its calibration samples.
        plan: frozen.
        calibrated: the same plan before it was frozen.
        settings: of the recipe.
        drop: points that the file lost.
        on_rule: called with the number of finished rules, and of all.
    """
    fit = trial_samples(context, context.fit)
    holdout = trial_samples(context, context.holdout)
    few = replace(context, calibration=fit)  # what a step is tried on
    facts = Facts(few, plan, calibrated, measure(context, plan, fit), settings)
    trials = Trials(context, plan, holdout, drop)
    specific: list[Finding] = []
    general: list[Finding] = []
    for done, rule in enumerate(RULES, 1):
        finding = _finding(rule, facts, trials)
        if finding is not None:
            (general if rule.general else specific).append(finding)
        on_rule(done, len(RULES))
    channels = _removed_channels(facts, trials)
    if channels is not None:
        specific.append(channels)
    explained = max(map(_gain, specific), default=0.0)
    return ranked(specific + [f for f in general if explained < CAUSE * _gain(f)])


def _finding(rule: Rule, facts: Facts, trials: Trials) -> Finding | None:
    """Return the finding of one rule, where it suspects a place and its change gains points."""
    suspects = rule.suspects(facts, trials)
    if not suspects:
        return None
    advice = rule.advise(facts, suspects)
    change = advice.trial()
    if isinstance(change, QuantPlan):
        gain = trials.gain_of_plan(change)
    else:
        gain = trials.gain(change, advice.over())
    if gain < max(MIN_GAIN, MIN_SHARE * trials.drop):
        return None
    return Finding(
        finding=advice.finding,
        evidence=f"{advice.evidence}; {BOUND}" if advice.bound else advice.evidence,
        recipe_lines=list(advice.lines),
        predicted_gain_points=round(gain, 2),
        predicted_cost_bytes=advice.bytes,
    )


def _removed_channels(facts: Facts, trials: Trials) -> Finding | None:
    """Return the finding that removed channels cost much of the drop, rounded or not."""
    if not facts.settings.removes_channels:
        return None
    share = 1 - trials.gain(unrounded(facts)) / trials.drop
    if share < REMOVED:
        return None
    return Finding(
        finding=f"Removing channels costs {share:.0%} of the loss",
        evidence="the smaller network in floats loses as much; training makes up for it: qtool qat",
    )


def _gain(finding: Finding) -> float:
    return finding.predicted_gain_points or 0.0


def ranked(findings: list[Finding]) -> list[Finding]:
    """Return findings by predicted gain; of those with the same recipe lines only the first.

    Args:
        findings: in any order.
    """
    ordered = sorted(findings, key=lambda each: -_gain(each))
    unique = {tuple(each.recipe_lines) or each.finding: each for each in reversed(ordered)}
    return [each for each in ordered if unique[tuple(each.recipe_lines) or each.finding] is each]


def findings_of_results(results: Results) -> list[Finding]:
    """Return the findings that follow from results of the run and need no trial.

    Args:
        results: of the run.
    """
    return ranked([*data_findings(results), *latency_finding(results), *size_finding(results)])


def trial_samples(context: Context, dataset: Dataset) -> Dataset:
    """Return evenly spread samples of a dataset, as many as one trial can afford."""
    affordable = int(TRIAL_MACS / max(1, total_macs(context.model)))
    count = min(MAX_SAMPLES, max(MIN_SAMPLES, affordable), dataset.count)
    return dataset.take(dataset.choose(count))
