"""The times of layers: every kernel of a layer is counted as its, in floats and in integers."""

import pytest

from qtool.pipeline.context import RunOptions
from qtool.pipeline.search.latency_table import measure_latency
from qtool.pipeline.search.trial import TrialRunner
from qtool.recipe.loader import load_recipe
from qtool.steps.stage_cache import temporary_cache


def test_every_layer_has_its_time_in_both_files(digits, tmp_path):
    recipe = load_recipe(digits / "int8.yaml", ["calibrate.count=8", "ptq=[]"])
    with temporary_cache() as cache:
        runner = TrialRunner.of(recipe, cache, RunOptions(threads=1), tmp_path)
        plan, _ = runner.quantized(recipe)
        names = [name for name, site in plan.sites.items() if site.weight is not None]
        table = measure_latency(runner, recipe, names)
    for times, total in (
        (table.float_ms, table.total_float),
        (table.integer_ms, table.total_integer),
    ):
        assert all(times[name] > 0 for name in names)
        assert total / 2 < sum(times.values()) <= total
    assert table.rest == pytest.approx(table.total_integer - sum(table.integer_ms.values()))
