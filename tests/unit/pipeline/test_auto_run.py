"""`ptq: auto` on the digits' network, to its end."""

import json

import pytest

from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.pipeline.search.resolve import resolve_search
from qtool.recipe.loader import load_recipe
from qtool.steps.stage_cache import temporary_cache

# More than the search needs on a busy machine.
SETTINGS = ("bits.weights=2", "ptq={auto: {time: 1h}}", "gates={max_drop: 1.0}")
OPTIONS = RunOptions(threads=1)


@pytest.mark.slow
def test_the_gate_holds_on_samples_that_chose_nothing(digits, tmp_path):
    report = run_ptq(load_recipe(digits / "int8.yaml", SETTINGS), tmp_path / "run", OPTIONS)
    rungs = report.search.rungs
    assert rungs[0].drop > 1 and rungs[-1].used and rungs[-1].drop <= 1
    assert report.verdict.status == "passed" and report.accuracy.drop <= 1
    assert report.search.chosen.bytes == report.size.quantized_bytes
    assert report.size.weight_bits_mean < 8

    chosen = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert "auto" not in {step.name for step in chosen.ptq}
    again = run_ptq(chosen, tmp_path / "again", OPTIONS)
    assert again.output.sha256 == report.output.sha256

    # Other evaluation samples, with wrong labels, choose the same.
    images = sorted((digits / "data" / "test").glob("*/*.png"))
    wrong = {f"{i.parent.name}/{i.name}": (int(i.parent.name) + 1) % 10 for i in images[::2]}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    other = [*SETTINGS, f"evaluate.labels={tmp_path / 'wrong.json'}", "evaluate.take.every=2"]
    with temporary_cache() as cache:
        recipe = load_recipe(digits / "int8.yaml", other)
        same, _ = resolve_search(recipe, cache, OPTIONS, tmp_path)
    for key in ("bits", "ptq", "rewrite"):
        assert getattr(same, key) == getattr(chosen, key)
    assert same.calibrate.method == chosen.calibrate.method
