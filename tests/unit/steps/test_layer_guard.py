"""Layers behind a guard: better on holdout or as they were, stored one by one, the same bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contexts import calibrated, keep_every_layer
from models import BUILDERS

from qtool.graph.queries import by_name, nodes_by_name
from qtool.ptq import BiasCorrection, ChannelAffineCompensation, Gptq, SeqMSE
from qtool.quant.bit_widths import Bits
from qtool.quant.plan_archive import plan_digest
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.steps.guard import NamedStep, apply_steps
from qtool.steps.layer_guard import LayerGuard, relative_errors
from qtool.steps.layerwise import LayerwiseRun
from qtool.steps.row_weights import row_power, row_weights, typical_power

THREE = Bits(weights=3)
STEPS = [BiasCorrection(), ChannelAffineCompensation(), Gptq(), SeqMSE()]  # one of each loop


def shifted(plan, context, site, shift):
    value = by_name(context.model.graph)[site.bias]
    return plan.with_bias_shift(site.bias, value, np.full(value.shape.numpy(), shift))


def passed(plan, context, shifts, called=None):
    """One pass that adds a constant to each bias; the plan, and the rows."""
    with LayerwiseRun(context, plan, "test", holdout=True) as run:
        guard = LayerGuard(run, context, "test", "options")
        for site, shift in zip(run.sites(), shifts, strict=True):

            def change(site=site, shift=shift):
                if called is not None:
                    called.append(site.name)
                return None if shift is None else shifted(run.plan, context, site, shift)

            guard.visit(site, change)
        return run.plan, guard


def test_errors_are_those_of_whole_runs():
    plan, context = calibrated(BUILDERS["residual"](), THREE, rows=20)
    nodes, errors = nodes_by_name(context.model.graph), {}
    with LayerwiseRun(context, plan, "test", holdout=True) as run:
        for site in run.sites():
            changed = shifted(plan, context, site, 0.1)
            errors[site.name] = relative_errors(run, site, (plan, changed))
    feeds, valid = next(context.feeds(context.holdout))
    assert valid == context.holdout.count == 5
    for site in (site for site in plan.sites.values() if site.weight):
        out = nodes[site.name].outputs[0].name
        # What is read is the output before its activation function and before rounding.
        with torch.inference_mode():
            y = Executor(context.model)(feeds, None, [out])[out]
        axis = 1 if site.op == "Conv" else -1
        weights = row_weights(row_power(y, axis), typical_power(row_power(y, axis)))
        plans = (plan, shifted(plan, context, site, 0.1))
        for each, error in zip(plans, errors[site.name], strict=True):
            grids = {k: g for k, g in plan.grids.items() if k != plan.grid_of.get(out)}
            y_q = Simulation(context.model, replace(each, grids=grids))(feeds, [out])[out]
            want = float((weights * (y_q - y) ** 2).sum() / (weights * y**2).sum())
            assert error == pytest.approx(want, rel=1e-4)


def test_a_layer_changes_only_where_its_error_falls():
    plan, context = calibrated(BUILDERS["residual"](), rows=20)
    sites = [site for site in plan.sites.values() if site.weight]
    assert len(sites) == 4
    wrong = shifted(plan, context, sites[1], 2.0)
    result, guard = passed(wrong, context, (5.0, -2.0, None, 0.0))
    assert plan_digest(result) == plan_digest(shifted(wrong, context, sites[1], -2.0))
    verdicts = [(row.block, row.kept, row.after < row.before) for row in guard.rows]
    names = [site.name for site in sites]
    assert verdicts == [
        (names[0], False, False),
        (names[1], True, True),
        (names[3], False, False),
    ]
    assert guard.rows[2].before == guard.rows[2].after  # unchanged is not worse
    assert guard.notes == ["1 of 3 layers left as they were: no better on holdout samples"]


def test_finished_layers_are_not_changed_again():
    plan, context = calibrated(BUILDERS["residual"](), rows=20)
    first, second = [], []
    whole = passed(plan, context, (0.01, -0.01, 3.0, None), first)
    again = passed(plan, context, (0.01, -0.01, 3.0, None), second)
    assert len(first) == 4 and not second
    assert plan_digest(whole[0]) == plan_digest(again[0]) and whole[1].rows == again[1].rows
    passed(shifted(plan, context, next(iter(plan.sites.values())), 0.1), context, [0.1] * 4, second)
    assert len(second) == 4  # another plan in front has results of its own


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_a_stopped_run_ends_with_the_bytes_of_a_whole_one(step, monkeypatch):
    net = BUILDERS["residual"]
    whole = step(*calibrated(net(), THREE))
    plan, context = calibrated(net(), THREE)
    made, original = [], LayerGuard._made

    def stopped(guard, site, change):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(site.name)
        return original(guard, site, change)

    monkeypatch.setattr(LayerGuard, "_made", stopped)
    with pytest.raises(KeyboardInterrupt):
        step(plan, context)
    made.clear()
    resumed = step(plan, context)
    assert len(made) == 2 == len(whole.rows) - 2
    assert plan_digest(resumed.plan) == plan_digest(whole.plan) != plan_digest(plan)
    assert resumed.notes == whole.notes and resumed.metrics == whole.metrics


def test_the_stored_step_replaces_its_layers_of_a_stopped_run_too(tmp_path, monkeypatch):
    steps = [NamedStep("gptq", Gptq(), "gptq")]
    plan, context = calibrated(BUILDERS["residual"](), THREE, folder=tmp_path)
    files, original = lambda: {path.name for path in context.cache.folder.iterdir()}, Gptq.__call__

    def stopped(step, plan, context):
        original(step, plan, context)
        raise KeyboardInterrupt

    before = files()
    monkeypatch.setattr(Gptq, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        apply_steps(steps, plan, context)
    layers = files() - before
    assert len(layers) == 4 and all(name.startswith("gptq-layer-") for name in layers)
    monkeypatch.setattr(Gptq, "__call__", original)
    monkeypatch.setattr(LayerGuard, "_made", lambda *args: pytest.fail("made again"))
    apply_steps(steps, plan, context)
    (step,) = files() - before
    assert step.startswith("gptq-") and step not in layers


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_layers_that_all_improve_are_those_of_an_unguarded_pass(step, monkeypatch):
    """The guard reads other samples than the fit, and leaves what it confirms untouched."""
    guarded = step(*calibrated(BUILDERS["inverted_bottleneck"](), THREE, rows=128))
    assert len(guarded.rows) > 2 and all(row.kept for row in guarded.rows)
    keep_every_layer(monkeypatch)
    free = step(*calibrated(BUILDERS["inverted_bottleneck"](), THREE, rows=128))
    assert plan_digest(guarded.plan) == plan_digest(free.plan)


def test_layers_of_a_step_that_is_rolled_back_are_not_reported_as_kept():
    plan, context = calibrated(BUILDERS["residual"](), THREE)
    demanding = NamedStep("gptq", Gptq(at_most=1e-9), "gptq")
    applied = apply_steps((demanding,), plan, context)
    assert len(applied.rows) == 5 and not any(row.kept for row in applied.rows)
    assert plan_digest(applied.plan) == plan_digest(plan)
