"""Gates that a run cannot check are refused before any work."""

from types import SimpleNamespace

import pytest

from qtool.errors import RecipeError
from qtool.pipeline.checks.gate_needs import check_gate_needs, require_baseline
from qtool.pipeline.context import RunOptions
from qtool.recipe.loader import load_recipe
from qtool.report.report import Report

DIGEST = "ab"


def recipe(folder, gates, metric="top1"):
    (folder / "net.onnx").write_bytes(b"onnx")
    (folder / "data").mkdir(exist_ok=True)
    evaluate = f"evaluate: {{images: data{f', metric: {metric}' if metric else ''}}}\n"
    text = f"model: net.onnx\ncalibrate: {{images: data}}\n{evaluate}gates: {gates}\n"
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml")


def baseline(digest=DIGEST):
    base = {"schema": 1, "qtool": "0", "command": "ptq", "seed": 0, "passed": True}
    base |= {"model": {"path": "n", "sha256": "1", "parameters": 1}}
    base |= {"output": {"path": "m", "sha256": "2", "opset": 21}}
    return Report.model_validate(base | {"data": {"evaluation": {"count": 9, "sha256": digest}}})


def check(recipe, labels=(0, 1), **options):
    check_gate_needs(recipe, SimpleNamespace(labels=labels, digest=DIGEST), RunOptions(**options))


@pytest.mark.parametrize("gate", ["max_drop", "min_accuracy", "max_regression"])
def test_accuracy_gates_need_labels_and_an_evaluate_section(tmp_path, gate):
    made = recipe(tmp_path, f"{{{gate}: 1.0}}", metric=None)
    with pytest.raises(RecipeError, match=rf"r\.yaml:4: gates\.{gate}: the gate needs labels"):
        check(made, labels=None, baseline=baseline())
    check(made, baseline=baseline())
    (tmp_path / "r.yaml").write_text(
        f"model: net.onnx\ncalibrate: {{images: data}}\ngates: {{{gate}: 1.0}}\n"
    )
    with pytest.raises(RecipeError, match=rf"gates\.{gate}: needs accuracy"):
        load_recipe(tmp_path / "r.yaml")


def test_agreement_needs_no_labels(tmp_path):
    check(recipe(tmp_path, "{min_agreement: 98}", metric=None), labels=None)


def test_a_minimum_of_an_error_rate_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"wer counts errors.*use max_drop"):
        check(recipe(tmp_path, "{min_accuracy: 5}", metric="wer"))
    check(recipe(tmp_path, "{min_accuracy: 5}"))


def test_regression_needs_a_baseline_on_the_same_samples(tmp_path):
    made = recipe(tmp_path, "{max_regression: 0.3}")
    with pytest.raises(RecipeError, match=r"gates\.max_regression: the gate needs --baseline RUN"):
        require_baseline(made, RunOptions())
    require_baseline(made, RunOptions(baseline=baseline()))
    check(made)  # a dry run checks no gate
    with pytest.raises(RecipeError, match="--baseline: that run was evaluated on other samples"):
        check(made, baseline=baseline("other"))
    check(made, baseline=baseline())
