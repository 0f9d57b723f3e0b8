"""Findings about data and speed; their healthy twins have none."""

import pytest
import yaml

from qtool.diagnosis.data_rules import (
    data_doubts,
    data_findings,
    latency_finding,
    size_finding,
)
from qtool.diagnosis.diagnose import findings_of_results
from qtool.diagnosis.facts import Results
from qtool.metrics.label_order import LabelOrder
from qtool.metrics.preprocessing_scores import PreprocessingCheck, PreprocessingScore
from qtool.report.latency_schema import KernelTime
from qtool.report.report import Gate, Kernels, Latency, Size


def check(current: int, other: int) -> PreprocessingCheck:
    def score(name, settings, hits):
        return PreprocessingScore(name, settings, (True,) * hits + (False,) * (64 - hits))

    others = (score("as in the recipe, color: rgb", "{color: rgb}", other),)
    return PreprocessingCheck(score("the recipe's", "{color: bgr}", current), others)


def order(classes=("cat", "dog", "bird")) -> LabelOrder:
    return LabelOrder("permuted", 100, 10.0, 90.0, (1, 2, 0), classes)


def timing(speedup: float) -> Latency:
    return Latency(
        threads=1, batch=1, float_ms=1.0, quantized_ms=1 / speedup, speedup=speedup, runs=9
    )


KERNELS = Kernels(integer={"QLinearConv": 2}, float={"Conv": 5}, stray_quantize=["a", "b"])


def test_a_preprocessing_that_scores_better_is_named():
    (finding,) = data_findings(Results(preprocessing=check(10, 50)))
    assert "color: rgb" in finding.finding and finding.predicted_gain_points == 62.5
    assert yaml.safe_load("\n".join(finding.recipe_lines)) == {
        key: {"preprocess": {"color": "rgb"}} for key in ("calibrate", "evaluate")
    }
    assert data_findings(Results(preprocessing=check(50, 50))) == []


def test_an_order_of_labels_that_scores_better_is_named():
    (finding,) = data_findings(Results(label_order=order()))
    assert "permuted" in finding.finding and finding.predicted_gain_points == 80.0
    # Output 0 is what the labels call bird, 1 cat, 2 dog.
    assert yaml.safe_load(finding.recipe_lines[0]) == {
        "evaluate": {"classes": ["bird", "cat", "dog"]}
    }
    (unnamed,) = data_findings(Results(label_order=order(())))
    assert unnamed.recipe_lines == []
    many = LabelOrder("permuted", 9, 1.0, 90.0, tuple(range(30)), tuple(map(str, range(30))))
    (long,) = data_findings(Results(label_order=many))
    assert long.recipe_lines == ["evaluate: {classes: classes.txt}"]


def test_doubts_about_the_data_say_which():
    (doubt,) = data_doubts(Results(label_order=order()))
    assert "permuted" in doubt
    assert data_doubts(Results()) == []


@pytest.mark.parametrize("speedup", [0.5, 0.99])
def test_a_slower_file_names_the_operators(speedup):
    (finding,) = latency_finding(Results(latency=timing(speedup), kernels=KERNELS))
    assert f"{1 / speedup:.2f}-fold" in finding.finding
    for words in ("2 integer kernels", "Conv x5", "2 Q/DQ"):
        assert words in finding.evidence
    assert finding.predicted_gain_points is None


def test_operators_are_ordered_by_the_time_they_take():
    times = [KernelTime(op=op, nodes=n, ms=ms) for op, n, ms in (("Erf", 1, 3.0), ("Conv", 5, 0.5))]
    slow = timing(0.5).model_copy(update={"kernels": times})
    kernels = KERNELS.model_copy(update={"float": {"Conv": 5, "Erf": 1, "Tanh": 1}})
    (finding,) = latency_finding(Results(latency=slow, kernels=kernels))
    assert "in floats: Erf x1 (3 ms), Conv x5 (0.5 ms), Tanh x1" in finding.evidence


def test_a_faster_file_has_no_finding_and_one_without_integers_has_lines():
    assert latency_finding(Results(latency=timing(1.0), kernels=KERNELS)) == []
    floats = Kernels(float={"Conv": 5})
    (finding,) = findings_of_results(Results(latency=timing(0.9), kernels=floats))
    assert finding.recipe_lines == ["bits: {activations: 8}"]


@pytest.mark.parametrize(
    ("name", "limit", "budget"),
    [("max_bytes", 65_000, 65_000), ("min_compression", 5.0, 66_240), ("max_bytes", 60_000, None)],
)
def test_a_file_above_its_limit_has_the_limit_as_a_budget(name, limit, budget):
    size = Size(float_bytes=331_200, quantized_bytes=71_982, compression=4.6)
    size = size.model_copy(update={"weight_payload_bytes": 39_000, "weight_bits_mean": 4.0})
    gate = Gate(name=name, limit=limit, value=0, passed=False)
    (finding,) = findings_of_results(Results(size=size, gates=(gate,)))
    lines = [] if budget is None else [{"bits": {"budget": {"bytes": budget}}}]
    assert [yaml.safe_load(line) for line in finding.recipe_lines] == lines
    assert "71,982 bytes against" in finding.evidence
    assert "about 62,232 with all weights at 3 bits" in finding.evidence
    passed = gate.model_copy(update={"passed": True})
    assert size_finding(Results(size=size, gates=(passed,))) == []
