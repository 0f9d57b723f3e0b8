"""Float islands by the error of the outputs: what is measured, chosen, said and used again."""

from dataclasses import replace

import numpy as np
import pytest
from models import Net, bind, cpu, feeds_for, graph_context, spool_batches

from qtool.calibration import MSE, MinMax
from qtool.pipeline.annotate_stage import make_plan
from qtool.pipeline.calibration.grids import make_grids, reused
from qtool.quant.plan_io import write_plan
from qtool.recipe.loader import recipe_from_options
from qtool.steps import islands
from qtool.steps.islands import choose_islands, island_reasons, with_grids_of


def residual(blocks: int, tmp_path, compress: bool = False) -> tuple:
    """A sum that every block adds a little to, and a context with 32 samples.

    Codes of the sum are rounded once a block; in float it is not rounded at all. ``compress``: only
    positive numbers are the output, so that its size depends on the values.
    """
    net = Net(opset=21)
    x = net.input("x", "N", 16)
    for _ in range(blocks):
        y = net.add("Relu", net.add("Gemm", x, net.weight(16, 16), net.weight(16)))
        y = net.add("Gemm", y, net.const(0.05 * net.rng.normal(0, 1, (16, 16))))
        x = net.add("Add", x, y)
    y = net.add("Gemm", x, net.weight(16, 256 if compress else 4))
    if compress:
        y = net.add("Compress", y, net.add("Reshape", net.add("Greater", y, net.const(0.0)),
                                           net.const(np.array([-1]))))  # fmt: skip
    net.output(net.add("Identity", y, out="y"))
    model = net.load(tmp_path)
    bind(model, feeds_for(model))
    rng = np.random.default_rng(3)
    batches = [{"x": rng.normal(size=(1, 16)).astype(np.float32)} for _ in range(32)]
    context = graph_context(model, dataset=spool_batches(batches, tmp_path))
    return model, replace(context, placement="auto")


def demanding(context, gain: float):
    return replace(context, target=replace(cpu(), island_gain_db=gain))


def grids(context):
    return make_grids(context, make_plan(context), MSE())


@pytest.fixture(autouse=True)
def never_enough(monkeypatch):
    monkeypatch.setattr(islands, "ENOUGH_DB", 100.0)


def test_kinds_that_gain_enough_stay_float_and_the_note_says_how_much(tmp_path):
    _, context = residual(6, tmp_path)
    plan = grids(demanding(context, 1.0))
    reasons = island_reasons(plan)
    assert reasons and {site.op for site in plan.sites.values()} == {"Gemm"}
    assert plan.log[-1].startswith("placement: auto: ") and " stay float: outputs " in plan.log[-1]
    before, after = plan.log[-1].split("outputs ")[1].split(" dB")[0].split(" -> ")
    assert float(after) > float(before)
    assert all(f"{before} -> {after} dB" in why for why in reasons.values())
    integer = grids(replace(context, placement="all"))
    assert context.loss(plan) < context.loss(integer)
    assert "Add" in {site.op for site in integer.sites.values()}


def test_an_output_of_any_size_is_compared_by_what_decides_its_size(tmp_path):
    """Numbers near 0 are above it in one plan and below it in another."""
    _, context = residual(6, tmp_path, compress=True)
    assert island_reasons(grids(demanding(context, 1.0)))


def test_a_gain_below_the_minimum_changes_nothing_and_is_said(tmp_path):
    _, context = residual(6, tmp_path)
    plan, integer = grids(demanding(context, 30.0)), grids(replace(context, placement="all"))
    assert plan.sites == integer.sites and plan.grids.keys() == integer.grids.keys()
    assert "all op kinds stay integer: " in plan.log[-1] and "less than 30 " in plan.log[-1]


def test_outputs_that_are_good_enough_are_not_compared_further(tmp_path, monkeypatch):
    monkeypatch.setattr(islands, "ENOUGH_DB", 1.0)
    _, context = residual(2, tmp_path)
    plan = grids(demanding(context, 0.01))
    assert "dB with every op kind in integers (8 held-out samples)" in plan.log[-1]
    assert not island_reasons(plan)


@pytest.mark.parametrize("placement", ["all", "conservative"])
def test_other_placements_measure_nothing(placement, tmp_path):
    _, context = residual(2, tmp_path)
    assert not grids(replace(demanding(context, 0.01), placement=placement)).log


def test_a_target_without_a_minimum_measures_nothing(tmp_path):
    _, context = residual(2, tmp_path)
    assert not grids(replace(context, target=replace(cpu(), island_gain_db=None))).log


def test_the_same_samples_give_the_same_islands(tmp_path):
    _, context = residual(6, tmp_path)
    first, second = (grids(demanding(context, 1.0)) for _ in range(2))
    assert first.log == second.log and first.float_nodes == second.float_nodes


def test_grids_of_unchanged_values_are_those_of_the_integer_plan(tmp_path):
    _, context = residual(6, tmp_path)
    integer = grids(replace(context, placement="all"))
    plan = grids(demanding(context, 1.0))
    shared = [name for name in plan.grid_of if name in integer.grid_of]
    assert shared
    for name in shared:
        if plan.params(name) is not None:
            assert plan.qparams(name).scale == pytest.approx(integer.qparams(name).scale)


def test_a_value_that_was_not_observed_is_no_candidate(tmp_path):
    _, context = residual(2, tmp_path)
    context = replace(context, placement="all")
    plan = make_plan(context)
    assert with_grids_of(plan, make_plan(context), {}, MinMax()) is None
    base = grids(context)
    kept = choose_islands(
        replace(demanding(context, 0.01), placement="auto"), base, lambda plan, nodes: None
    )
    assert kept.sites == base.sites and "all op kinds stay integer" in kept.log[-1]


def test_an_earlier_plan_brings_its_islands(tmp_path):
    _, context = residual(3, tmp_path)
    context = demanding(context, 1.0)
    earlier = grids(context)
    write_plan(earlier, tmp_path)
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 16), np.float32))
    recipe = recipe_from_options(tmp_path / "net.onnx", tmp_path / "x.npz")
    plan = reused(recipe, context, make_plan(context), tmp_path / "plan.json")
    assert island_reasons(plan) == island_reasons(earlier) != {}
    assert plan.sites == earlier.sites
