"""Samples that searches compare on: none is an evaluation sample, and there are always some."""

from dataclasses import replace

from qtool.data import open_dataset
from qtool.pipeline.context import RunOptions
from qtool.pipeline.prepare import prepare
from qtool.pipeline.search.reference import unused_reference
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
