"""The verdict of a run: one word and its reason, from what the report holds."""

from typing import TYPE_CHECKING

from qtool.report.gates import gate_number, output_gates, parity_gates, unproven_gates
from qtool.report.schema import Accuracy, Status, Verdict

if TYPE_CHECKING:
    from qtool.report.report import Report

WARN_DROP = 1.0
"""Points of drop above which a run without a max_drop gate gets a warning."""


def verdict(report: "Report") -> Verdict:
    """Return the verdict that the report holds; that of an older report is computed.

    Args:
        report: of any run.
    """
    return report.verdict if report.verdict is not None else assess(report)


def with_verdict(report: "Report") -> "Report":
    """Return the report with its verdict; `passed` becomes None where it is not judged.

    Args:
        report: complete but for the verdict.
    """
    result = assess(report)
    passed = None if result.status == "not judged" else report.passed
    return report.model_copy(update={"verdict": result, "passed": passed})


def assess(report: "Report") -> Verdict:
    """Return the verdict that follows from gates, drop and data, the first of these that applies.

    1. failed: a gate failed.
    2. not judged: the data cannot show whether the file is good (:func:`doubts`).
    3. not proven: the limit of an accuracy gate lies inside the 95 % interval of its value.
    4. warning: no gate limits the drop, and it is above WARN_DROP.
    5. passed.

    Args:
        report: complete but for the verdict.
    """
    accuracy = report.accuracy
    limit = next((gate.limit for gate in report.gates if gate.name == "max_drop"), None)
    unproven = unproven_gates(report.gates, accuracy)
    reasons = doubts(report)
    if report.passed is False:
        return _verdict("failed", " ".join([_failure(report), *unproven, *reasons]))
    if reasons:
        return _verdict("not judged", " ".join(reasons))
    if unproven:
        return _verdict(
            "not proven",
            f"All gates pass, but this is not certain: {' '.join(unproven)} More evaluation "
            "samples narrow the interval.",
        )
    drop = accuracy.drop if accuracy else None
    if limit is None and drop is not None and drop > WARN_DROP:
        return _verdict(
            "warning",
            f"The drop is {drop:.2f} {unit_word(accuracy)} and no max_drop gate limits it.",
        )
    return _verdict("passed", _success(report))


def doubts(report: "Report") -> list[str]:
    """Return the reasons why the data cannot show whether the file is good; often none.

    Args:
        report: complete but for the verdict.
    """
    accuracy = report.accuracy
    outputs_checked = bool(output_gates(report.gates))
    samples = report.data.calibration
    if accuracy is None and samples is not None and samples.synthetic is not None:
        return [
            f"No data was read: ranges come from {samples.synthetic} statistics, and the accuracy "
            "is unknown; add `evaluate` to measure it, calibration samples to improve it."
        ]
    if report.sensitivity:
        return ["Costs of sites are measured on calibration samples; nothing is evaluated."]
    if accuracy is None:
        return ["Nothing was measured on evaluation samples."]
    if accuracy.samples < 2:
        return ["One sample shows nothing; give more evaluation samples."]
    if accuracy.drop is None:
        if outputs_checked:
            return []
        return [
            "There are no labels, so the accuracy is unknown; give labels, or limit "
            "the agreement with the float model by gates: {min_agreement: 98}."
        ]
    reasons = list(report.data.doubts or ())
    if _at_chance(accuracy):
        reasons.append(
            f"The float model scores {accuracy.float:.2f} %, no better than always "
            f"naming one class ({accuracy.chance:.2f} %), so the drop says nothing; check "
            "preprocess and the order of the labels."
        )
    have, outputs = accuracy.label_classes, accuracy.classes
    if have is not None and outputs is not None and have < outputs:
        reasons.append(
            f"The data has {have} classes and the model {outputs} outputs, so class "
            "numbers may stand for other classes; add the missing class folders (empty ones "
            "count), or give labels as numbers."
        )
    return reasons


def drop_words(accuracy: Accuracy) -> str:
    """Return the drop in words: drop 0.12 points, no loss, no loss (gained 0.22 points).

    Args:
        accuracy: its drop is measured.
    """
    drop, unit = accuracy.drop or 0.0, unit_word(accuracy)
    if float(f"{drop:.2f}") > 0:
        return f"drop {drop:.2f} {unit}"
    gain = f"{-drop:.2f}"
    return "no loss" if float(gain) == 0 else f"no loss (gained {gain} {unit})"


def unit_word(accuracy: Accuracy | None) -> str:
    """Return the unit of a difference in the metric: points for "%", else the metric's own."""
    unit = accuracy.unit if accuracy else None
    return "points" if unit in (None, "%") else str(unit)


def _verdict(status: Status, reason: str) -> Verdict:
    return Verdict(status=status, reason=reason)


def _at_chance(accuracy: Accuracy) -> bool:
    score, chance = accuracy.float, accuracy.chance
    return score is not None and chance is not None and score <= chance


def _failure(report: "Report") -> str:
    failed = [gate for gate in [*report.gates, *parity_gates(report)] if not gate.passed]
    if not failed:
        return "The run did not pass, though every gate listed passes: see the notes of its stages."
    listed = (
        f"{gate.name} {gate_number(gate.name, gate.value)} "
        f"(limit {gate_number(gate.name, gate.limit, 'g')})"
        for gate in failed
    )
    return f"{'Gate' if len(failed) == 1 else 'Gates'} failed: {'; '.join(listed)}."


def _success(report: "Report") -> str:
    count, accuracy = len(report.gates), report.accuracy
    lead = {0: "No gate was set", 1: "The gate passes", 2: "Both gates pass"}.get(
        count, f"All {count} gates pass"
    )
    if accuracy is None or accuracy.drop is None:
        return f"{lead}; the drop was not measured."
    return f"{lead}; {drop_words(accuracy)}."
