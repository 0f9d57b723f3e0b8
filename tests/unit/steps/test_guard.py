"""Guarded steps: what helps is used, what does not is rolled back, nothing is computed twice."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from models import Net, feeds_for, graph_context, make_grids, make_plan, rewritten
from pydantic.dataclasses import dataclass

from qtool.calibration import MinMax
from qtool.data.spool import spool_batches
from qtool.errors import DataError, RecipeError
from qtool.ptq import PTQ_STEPS
from qtool.quant.bit_widths import Bits
from qtool.quant.plan_archive import load_plan_archive, plan_digest, save_plan_archive
from qtool.steps.guard import NamedStep, apply_steps, check_needs
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class AddToBias:
    """Add a constant to the bias of the last layer; counts its calls."""

    shift: float
    needs: ClassVar[frozenset[str]] = frozenset()
    guarded: ClassVar[bool] = True
    calls: ClassVar[list[float]] = []

    def __call__(self, plan, context):
        self.calls.append(self.shift)
        bias = np.asarray(plan.weight_overrides.get("b", 0), np.float32)
        overrides = {**plan.weight_overrides, "b": bias + np.full(4, self.shift, np.float32)}
        return StepResult(replace(plan, weight_overrides=overrides), (f"shift {self.shift}",))


@pytest.fixture
def run(tmp_path):
    """A plan whose last bias is wrong by 3, and its context."""
    AddToBias.calls.clear()
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    weight, bias = net.weight(4, 4, 1, 1), net.const(np.zeros(4, np.float32), "b")
    net.output(net.add("Conv", x, weight, bias, out="y"))
    model = net.load(tmp_path)
    rewritten(model)
    batches = [feeds_for(model, seed=1, rows=24)]
    plan = make_grids(model, make_plan(model, None, Bits()), batches, MinMax())
    wrong = replace(plan, weight_overrides={"b": np.full(4, 3, np.float32)})
    context = graph_context(model, dataset=spool_batches(batches, tmp_path))
    return wrong, replace(context, cache=replace(context.cache, fresh=False))


def test_a_step_that_helps_is_kept_and_one_that_does_not_is_rolled_back(run):
    plan, context = run
    good, bad = NamedStep("good", AddToBias(-3.0)), NamedStep("bad", AddToBias(5.0))
    applied = apply_steps((good, bad), plan, context)
    np.testing.assert_array_equal(applied.plan.weight_overrides["b"], np.zeros(4))
    rows = [(row.step, row.kept, row.after < row.before) for row in applied.rows]
    assert rows == [("good", True, True), ("bad", False, False)]
    notes = {stage.name: stage.notes[-1] for stage in context.cache.done}
    assert notes["good"].endswith("on 6 holdout samples; kept")
    assert notes["bad"].endswith("no better: rolled back")


def test_a_step_that_changes_nothing_is_not_called_worse(run):
    plan, context = run
    (row,) = apply_steps((NamedStep("none", AddToBias(0.0)),), plan, context).rows
    assert not row.kept and row.before == row.after
    assert context.cache.done[-1].notes == ["shift 0.0", "it changes nothing"]


def test_a_result_is_computed_once_for_one_plan_and_one_set_of_options(run):
    plan, context = run
    for key in ("a", "a", "b"):
        apply_steps((NamedStep("step", AddToBias(-3.0), key),), plan, context)
    assert len(AddToBias.calls) == 2
    assert [stage.cached for stage in context.cache.done] == [False, True, False]


def test_holdout_samples_are_not_fitted_to(run):
    _, context = run
    assert not set(context.fit.names) & set(context.holdout.names)
    assert context.fit.count + context.holdout.count == context.calibration.count == 24


def test_one_sample_is_too_few(run):
    _, context = run
    alone = replace(context, calibration=context.calibration.take([0]))
    with pytest.raises(DataError, match=r"found 1 sample.*give at least 2"):
        alone.parts  # noqa: B018


def test_a_need_that_is_not_met_is_refused():
    step = NamedStep("train", AddToBias(0.0))
    check_needs((step,), frozenset())
    needy = type("Needy", (AddToBias,), {"needs": frozenset({"labels"})})(0.0)
    with pytest.raises(RecipeError, match="ptq: needy needs labels"):
        check_needs((NamedStep("needy", needy),), frozenset({"bias"}))


def test_steps_that_read_samples_need_them():
    """Noise stands in for samples where none are given; no step may fit to it."""
    without = {name for name, step in PTQ_STEPS.items() if "samples" not in step.needs}
    assert without == {"analytic_bias_correction"}


def test_a_plan_survives_its_archive_and_its_digest_says_what_changed(run, tmp_path):
    plan, _ = run
    save_plan_archive(plan, tmp_path / "p.zip", '{"notes": []}')
    again, extra = load_plan_archive(tmp_path / "p.zip")
    assert extra == '{"notes": []}'
    assert plan_digest(again) == plan_digest(plan)
    assert plan_digest(plan.note("another line")) == plan_digest(plan)
    assert plan_digest(replace(plan, weight_overrides={})) != plan_digest(plan)


@pytest.mark.parametrize(("at_most", "kept"), [(1.0, True), (0.5, True), (0.1, False)])
def test_a_step_may_demand_a_larger_fall(run, at_most, kept):
    """Two thirds of the wrong shift taken back leave a ninth of the squared error."""

    @dataclass(frozen=True)
    class Demanding(AddToBias):
        at_most: ClassVar[float]

    Demanding.at_most = at_most
    applied = apply_steps((NamedStep("two thirds", Demanding(-2.0)),), *run)
    (row,) = applied.rows
    assert row.kept is kept and 0.1 < row.after / row.before < 0.13
    bias = applied.plan.weight_overrides["b"]
    np.testing.assert_array_equal(bias, np.full(4, 1 if kept else 3))
