"""Gates: each limit against its value, and what each needs."""

import pytest
from full_report import FULL, changed, gate

from qtool.errors import RecipeError
from qtool.recipe.sections.gates import Gates
from qtool.report.gates import GATES, Measured, check_gates, parity_gates
from qtool.report.render import render
from qtool.report.report import Accuracy, Report
from qtool.report.verdict import with_verdict

REPORT = Report.model_validate(FULL)
DIGEST = FULL["data"]["evaluation"]["sha256"]


def measured(**changes):
    parts = {
        "accuracy": REPORT.accuracy,
        "size": REPORT.size,
        "latency": REPORT.latency,
        "layers": tuple(REPORT.layers),
        "evaluation": DIGEST,
        "baseline": changed(accuracy={**FULL["accuracy"], "quantized": 91.86}),
    }
    return Measured(**{**parts, **changes})


VALUES = {
    "max_drop": 0.12,
    "min_accuracy": 91.61,
    "min_agreement": 98.4,
    "max_regression": 0.25,
    "min_compression": 3.76,
    "max_bytes": 290112,
    "min_speedup": 2.1,
    "max_latency_ms": 1.0,
    "min_layer_sqnr": 38.2,
}


def test_the_recipe_and_the_table_have_the_same_gates():
    assert set(Gates.model_fields) == set(GATES) == set(VALUES)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("beyond", [0, 1, -1])
def test_a_value_on_the_limit_passes_and_one_beyond_it_fails(name, beyond):
    limit = VALUES[name] + beyond * 1e-4 * VALUES[name]
    (checked,) = check_gates({name: limit}, measured())
    upper = name.startswith("max_")
    assert checked.passed is (beyond >= 0 if upper else beyond <= 0)
    assert (checked.name, checked.limit) == (name, limit)
    assert checked.value == pytest.approx(VALUES[name], abs=1e-9)  # a difference of two doubles


@pytest.mark.parametrize("name", GATES)
def test_a_gate_without_its_measurement_is_refused(name):
    with pytest.raises(RecipeError, match=rf"gates\.{name}: 1 cannot be checked, as it needs"):
        check_gates({name: 1.0}, Measured(accuracy=Accuracy(samples=64)))


def test_gates_that_are_not_set_are_left_out_and_unknown_ones_refused():
    assert [one.name for one in check_gates({"max_drop": None, "max_bytes": 9}, measured())] == [
        "max_bytes"
    ]
    with pytest.raises(RecipeError, match='did you mean "max_drop"'):
        check_gates({"max_dropp": 1.0}, measured())


def test_an_error_rate_regresses_when_it_rises():
    rate = {"metric": "wer", "unit": "%", "samples": 9, "lower_is_better": True}
    before = changed(accuracy={**rate, "quantized": 5.0})
    after = Accuracy(**rate, quantized=7.0)
    (checked,) = check_gates({"max_regression": 1.0}, measured(accuracy=after, baseline=before))
    assert (checked.value, checked.passed) == (2.0, False)


@pytest.mark.parametrize(
    "baseline",
    [
        changed(data={"evaluation": {"count": 9, "sha256": "other"}}),
        changed(accuracy={**FULL["accuracy"], "metric": "top5"}),
        changed(accuracy=None),
        None,
    ],
)
def test_runs_that_measured_something_else_are_no_baseline(baseline):
    assert measured(baseline=baseline).regression is None
    with pytest.raises(RecipeError, match="--baseline"):
        check_gates({"max_regression": 1.0}, measured(baseline=baseline))


@pytest.mark.parametrize(
    ("text", "count"),
    [("1.5MB", 1500000), ("1.5 mb", 1500000), ("2MiB", 2 << 20), ("10", 10), (10, 10)],
)
def test_sizes_are_read_with_units(text, count):
    assert Gates.model_validate({"max_bytes": text}).max_bytes == count


@pytest.mark.parametrize("text", ["1.5", 0, "0MB", "big", "1.5XB", "-1MB", True])
def test_other_sizes_are_refused(text):
    if text == "1.5":  # rounds to whole bytes
        assert Gates.model_validate({"max_bytes": text}).max_bytes == 2
        return
    with pytest.raises(ValueError, match="max_bytes"):
        Gates.model_validate({"max_bytes": text})


def test_parity_gates_are_shown_once():
    assert len(parity_gates(REPORT)) == 2
    listed = [*FULL["gates"], gate(1.0, 0.0, "parity_max_lsb")]
    assert parity_gates(changed(gates=listed)) == []
    assert parity_gates(changed(parity=None)) == []


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "junit"])
def test_bytes_are_shown_in_full(form):
    failed = gate(100_000, 104_319, "max_bytes")
    text = render(with_verdict(changed(gates=[failed], passed=False)), form)
    assert "104,319" in text and "100,000" in text and "e+05" not in text
