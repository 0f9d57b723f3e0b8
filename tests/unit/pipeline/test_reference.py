"""Samples that searches compare on: none is an evaluation sample, and there are always some."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from qtool.data import open_dataset
from qtool.errors import RecipeError
from qtool.graph.queries import by_name
from qtool.pipeline.context import RunOptions
from qtool.pipeline.prepare import prepare
from qtool.pipeline.run import run_ptq
from qtool.pipeline.search import reference
from qtool.pipeline.search.reference import unused_reference, with_unused_samples
from qtool.pipeline.search.trial import TrialRunner
from qtool.recipe.loader import load_recipe
from qtool.steps.stage_cache import temporary_cache


def test_held_out_samples_stand_in_for_evaluation_samples(digits):
    recipe = load_recipe(digits / "int8.yaml", ["calibrate.count=16"])
    with temporary_cache() as cache:
        prepared = prepare(recipe, cache, RunOptions(threads=1))
    context = prepared.context
    unused = unused_reference(prepared, 8).dataset.positions
    assert len(unused) == 8 and not set(unused) & set(context.calibration.positions)
    # All that calibration leaves of the folder is evaluated on.
    whole = open_dataset(recipe.calibrate.model_copy(update={"count": None}), context.inputs)
    used = set(context.calibration.positions)
    rest = [k for k, position in enumerate(whole.positions) if position not in used]
    evaluation = replace(prepared.evaluation, dataset=whole.take(rest))
    chosen = unused_reference(replace(prepared, evaluation=evaluation), 8).dataset.positions
    assert chosen and set(chosen) <= set(context.holdout.positions)


def test_class_folders_are_no_labels_of_a_network_without_classes(digits):
    recipe = load_recipe(digits / "int8.yaml", ["calibrate.count=16", "evaluate.metric=null"])
    with temporary_cache() as cache:
        prepared = prepare(recipe, cache, RunOptions(threads=1))
    assert unused_reference(prepared, 8).metric.name == "top1"
    context = prepared.context
    output = by_name(context.model.graph)[context.first_output]
    output.shape = ir.Shape(["N", 10, 4, 4])
    # Without the metric that was guessed for the classes.
    evaluate = prepared.recipe.evaluate.model_copy(update={"metric": None})
    prepared = replace(prepared, recipe=prepared.recipe.model_copy(update={"evaluate": evaluate}))
    assert unused_reference(prepared, 8).metric is None


@pytest.mark.parametrize(("metric", "used"), [("top1", "top1"), ("f1", None), ("sqnr", None)])
def test_only_accuracies_need_no_labels(digits, metric, used):
    recipe = load_recipe(digits / "int8.yaml", [f"evaluate.metric={metric}"])
    chosen = reference._metric(recipe, None, None, RunOptions())
    assert (chosen and chosen.name) == used


def test_synthetic_samples_are_refused_before_any_trial(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(TrialRunner, "quantized", lambda *args: pytest.fail("a trial ran"))
    settings = ["calibrate={synthetic: batchnorm}", "ptq=null", "bits.budget={bits: 5}"]
    recipe = load_recipe(digits / "int8.yaml", settings)
    with pytest.raises(RecipeError, match="synthetic ones are noise"):
        run_ptq(recipe, tmp_path / "run", RunOptions(threads=1))


@pytest.mark.parametrize(
    ("count", "least", "metric", "used"),
    [
        ("null", 144, "top1", 144),
        (280, 144, "top1", 144),
        (100, 144, "top1", 100),
        (280, 145, "top1", 280),
        (280, 144, None, 280),
    ],
)
def test_half_of_the_samples_are_left_to_compare_networks_on(
    digits, monkeypatch, count, least, metric, used
):
    whole = SimpleNamespace(count=288, labels=np.zeros(288))
    monkeypatch.setattr(reference, "_whole", lambda *args: whole)
    monkeypatch.setattr(reference, "_metric", lambda *args: metric)
    monkeypatch.setattr(reference, "MIN_CALIBRATED", least)
    recipe = load_recipe(digits / "int8.yaml", [f"calibrate.count={count}"])
    options = RunOptions(threads=1)
    assert with_unused_samples(recipe, None, {}, options).calibrate.count == used


def test_a_search_reads_model_and_data_once(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "MIN_CALIBRATED", 16)
    recipe = load_recipe(digits / "int8.yaml", ["calibrate.take.every=16"])
    with temporary_cache() as cache:
        runner = TrialRunner.of(recipe, cache, RunOptions(threads=1), tmp_path)
        assert [stage.name for stage in cache.done] == ["load", "preprocessing"]
    used = runner.prepared.context.calibration
    assert runner.fewer == used.count == runner.base.calibrate.count
    unused = runner.reference.dataset
    assert unused.labels is not None and unused.count >= used.count
    assert not set(unused.positions) & {*used.positions} - {
        *runner.prepared.context.holdout.positions
    }
