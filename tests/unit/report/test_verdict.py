"""The verdict: honest where the data cannot show anything, and the same in every format."""

import json
import re
from html import unescape
from xml.etree import ElementTree

import pytest
from full_report import FULL, accuracy, changed, gate

from qtool.report.render import FORMATS, render
from qtool.report.report import Accuracy, Gate, Parity, Report
from qtool.report.verdict import drop_words, verdict, with_verdict


@pytest.mark.parametrize(
    ("limit", "drop", "interval", "status"),
    [
        (1.0, 0.12, (-0.05, 0.29), "passed"),
        (1.0, 0.9, (0.5, 1.3), "not proven"),
        (1.0, 0.9, (0.5, 1.0), "passed"),  # the whole interval is within the limit
        (0.5, 0.5, (0.5, 0.6), "not proven"),
        (0.0, 0.0, (0.0, 0.0), "passed"),
        (None, 1.0, (0.9, 1.1), "passed"),
        (None, 1.01, (0.9, 1.1), "warning"),
    ],
)
def test_drop_against_its_limit(limit, drop, interval, status):
    gates = [] if limit is None else [gate(limit, drop)]
    report = with_verdict(changed(accuracy=accuracy(drop, interval), gates=gates))
    assert verdict(report).status == report.verdict.status == status
    assert report.passed is True


UNLABELLED = {"samples": 64, "agreement": 100.0}


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (accuracy(float=10.0, chance=10.0, quantized=10.0), "no better than always naming one"),
        (accuracy(classes=10, label_classes=9), "9 classes and the model 10 outputs"),
        (accuracy(samples=1), "One sample"),
        ({"samples": 1, "agreement": 100.0}, "One sample"),
        (UNLABELLED, "no labels"),
        (None, "Nothing was measured"),
    ],
)
def test_where_the_data_shows_nothing_the_run_is_not_judged(part, reason):
    report = with_verdict(changed(accuracy=part, gates=[]))
    assert report.verdict.status == "not judged"
    assert reason in report.verdict.reason
    written = json.loads(report.to_json())
    assert written["passed"] is None and list(written)[4:6] == ["passed", "verdict"]
    assert Report.model_validate(written) == report


@pytest.mark.parametrize(
    ("part", "gates"),
    [
        (accuracy(float=10.01, chance=10.0), []),
        (accuracy(classes=10, label_classes=10), []),
        (accuracy(classes=10), []),  # numbered labels: absent ones are absent on purpose
        (accuracy(samples=2), []),
        (UNLABELLED, [Gate(name="min_agreement", limit=98, value=100, passed=True).model_dump()]),
    ],
)
def test_their_healthy_twins_pass(part, gates):
    report = with_verdict(changed(accuracy=part, gates=gates))
    assert (report.verdict.status, report.passed) == ("passed", True)


@pytest.mark.parametrize(
    ("name", "field", "interval", "status"),
    [
        ("min_agreement", "agreement_ci95", (94.3, 100.0), "not proven"),  # 64 of 64 samples
        ("min_agreement", "agreement_ci95", (98.5, 100.0), "passed"),
        ("min_accuracy", "quantized_ci95", (97.2, 99.4), "not proven"),
        ("min_accuracy", "quantized_ci95", (98.0, 99.4), "passed"),
        ("min_accuracy", "quantized_ci95", None, "passed"),  # a metric without an interval
    ],
)
def test_too_few_samples_prove_no_lower_limit(name, field, interval, status):
    gates = [Gate(name=name, limit=98, value=99, passed=True).model_dump()]
    report = with_verdict(changed(accuracy=accuracy() | {field: interval}, gates=gates))
    assert report.verdict.status == status
    assert (name in report.verdict.reason) == (status == "not proven")


def test_a_gate_on_the_size_is_no_substitute_for_labels():
    size = Gate(name="min_compression", limit=3, value=4, passed=True).model_dump()
    assert verdict(changed(accuracy=UNLABELLED, gates=[size])).status == "not judged"


def test_a_failed_run_names_its_gates_and_its_doubts():
    part = accuracy(1.2, (0.8, 1.6), classes=10, label_classes=2)
    report = with_verdict(changed(passed=False, accuracy=part, gates=[gate(1.0, 1.2)]))
    assert (report.verdict.status, report.passed) == ("failed", False)
    for words in ("max_drop 1.2 (limit 1)", "inside", "2 classes"):
        assert words in report.verdict.reason


def test_integer_codes_have_a_limit_that_a_pooled_share_cannot_hide():
    # 100 of 10^6 integer codes differ, none of 9 * 10^6 after float operators: pooled 1e-5.
    parity = {"samples": 1, "max_lsb": 1, "share_off": 1e-5, "integer_share_off": 1e-4}
    parity["after_float_share_off"] = 0.0
    assert Parity(**{k: parity[k] for k in ("samples", "max_lsb", "share_off")}).passed
    report = changed(parity=parity, passed=False, kernels={"float": {"Softmax": 1}})
    assert not report.parity.passed
    assert verdict(report).status == "failed"
    assert "parity_integer_share_off 0.0001 (limit 1e-05)" in verdict(report).reason
    assert json.loads(report.to_json())["parity"] == parity


def test_a_warning_comes_also_where_another_gate_is_set():
    report = changed(
        accuracy=accuracy(5.0, (4.0, 6.0)),
        gates=[Gate(name="min_compression", limit=3, value=4, passed=True).model_dump()],
    )
    assert verdict(report).status == "warning"


def test_the_verdict_of_an_older_report_is_computed():
    old = Report.model_validate({key: FULL[key] for key in FULL if key != "verdict"})
    assert old.verdict is None
    assert verdict(old) == with_verdict(old).verdict == Report.model_validate(FULL).verdict


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (0.12, "drop 0.12 points"),
        (0.0, "no loss"),
        (0.004, "no loss"),
        (-0.004, "no loss"),
        (-0.22, "no loss (gained 0.22 points)"),
    ],
)
def test_a_gain_is_not_called_a_negative_drop(drop, words):
    assert drop_words(Accuracy(**accuracy(drop))) == words
    assert drop_words(Accuracy(**accuracy(-0.5, unit="dB"))) == "no loss (gained 0.50 dB)"
    shown = changed(accuracy=accuracy(drop, (drop - 0.1, drop + 0.1)))
    for fmt in ("terminal", "markdown", "html"):
        text = " ".join(render(shown, fmt).split())
        assert words in text and not re.search(r"drop [−-]", text)


CASES = {
    "passed": changed(),
    "failed": changed(passed=False, gates=[gate(0.1, 0.12)]),
    "not proven": changed(accuracy=accuracy(0.9, (0.5, 1.3)), gates=[gate(1.0, 0.9)]),
    "not judged": changed(accuracy=UNLABELLED, gates=[]),
    "warning": changed(accuracy=accuracy(5.0, (4.0, 6.0)), gates=[]),
}


@pytest.mark.parametrize("status", CASES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_says_the_same(status, fmt):
    report = with_verdict(CASES[status])
    assert report.verdict.status == status
    text = " ".join(render(report, fmt).replace("│", " ").replace("\\_", "_").split())
    word = {"terminal": status.upper(), "html": f">{status.capitalize()}</span>"}.get(fmt, status)
    assert word in text
    reason = report.verdict.reason
    text = unescape(text) if fmt == "html" else text
    assert reason in text.replace("\u200b", "").replace("\\{", "{").replace("\\}", "}")
    assert render([report, report], fmt)  # side by side too


@pytest.mark.parametrize("status", CASES)
def test_junit_counts_one_failure_for_each_gate_that_failed(status):
    root = ElementTree.fromstring(render(with_verdict(CASES[status]), "junit"))
    assert int(root.get("failures")) == (status == "failed")
    assert int(root.get("skipped")) == (status == "not judged")
    assert root.findall(".//failure") == root.findall(".//testcase[@name='max_drop']/failure")
