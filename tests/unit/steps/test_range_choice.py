"""The choice of ranges by the network's output: what decides, on which samples, and its note."""

from dataclasses import replace
from itertools import chain, repeat

import numpy as np
import pytest
from models import Net, bind, cpu, feeds_for, graph_context, make_grids, spool_batches

from qtool.annotation.annotator import annotate
from qtool.calibration import MSE, Auto
from qtool.pipeline.calibration import grids
from qtool.quant.bit_widths import Bits
from qtool.steps import range_choice

BITS = Bits(weights=8, activations=3)


def network(tmp_path):
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4), out="a")
    net.output(net.conv(x, 4, 2, out="y"))
    model = net.load(tmp_path)
    bind(model, feeds_for(model))
    return model


def batches(count: int = 16):
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def test_auto_compares_finalists_on_samples_without_ranges(tmp_path):
    model = network(tmp_path)
    context = graph_context(model, dataset=spool_batches(batches(), tmp_path))
    plan = grids.make_grids(context, annotate(model, cpu(), BITS), Auto())
    assert context.holdout.count == 4
    note = next(n for n in plan.log if "held-out" in n)
    assert "distance to the float network on 4 held-out samples: value by value " in note
    assert all(f"{name} " in note for name in Auto.finalists)
    # No finalist is nearer than what was chosen by more than chance, here by 5 %.
    distances = dict(part.rsplit(" ", 1) for part in note.split("samples: ")[1].split(", "))
    assert context.loss(plan) <= min(map(float, distances.values())) / 0.95 + 1e-3


def test_a_far_better_finalist_is_chosen(tmp_path, monkeypatch):
    model = network(tmp_path)
    context = graph_context(model, dataset=spool_batches(batches(), tmp_path))
    # Value by value, then the finalists in their order, then single ranges.
    losses = chain([1.0, 0.5, 0.2, 0.4, 0.3], repeat(1.0))
    monkeypatch.setattr(type(context), "losses", lambda self, *_, **__: np.full(4, next(losses)))
    plan = grids.make_grids(context, annotate(model, cpu(), BITS), Auto())
    assert plan.log[-1].startswith("mean_minmax for all values; distance to")


def test_a_finalist_that_is_nearer_by_chance_is_not_chosen(tmp_path, monkeypatch):
    """Its mean distance is half, and it is farther on two of four samples."""
    model = network(tmp_path)
    context = graph_context(model, dataset=spool_batches(batches(), tmp_path))
    luck = [np.ones(4), np.array([0.0, 0.0, 1.0, 1.0]) * 1.2 - 0.1]
    losses = chain(luck, repeat(np.ones(4)))
    monkeypatch.setattr(type(context), "losses", lambda self, *_, **__: next(losses))
    plan = grids.make_grids(context, annotate(model, cpu(), BITS), Auto())
    assert plan.log[-1].startswith("estimators value by value; distance to")


def test_single_ranges_are_replaced_where_that_lowers_the_distance(tmp_path, monkeypatch):
    """A distance that is least for the coarsest range of `a` and the finest of `x`."""
    model = network(tmp_path)
    context = graph_context(model, dataset=spool_batches(batches(), tmp_path))
    tried = []

    def loss(self, plan, float_weights):
        tried.append([float(plan.params(name).scale) for name in ("a", "x")])
        return np.full(4, np.exp(20 * (tried[-1][1] - tried[-1][0])))

    monkeypatch.setattr(type(context), "losses", loss)
    plan = grids.make_grids(context, annotate(model, cpu(), BITS), Auto())
    plans = np.array(tried[: 1 + len(Auto.finalists)])
    assert plans[:, 0].argmax() != plans[:, 1].argmin()  # no estimator is best for both
    assert float(plan.params("a").scale) == pytest.approx(plans[:, 0].max(), abs=0.003)
    assert float(plan.params("x").scale) == pytest.approx(plans[:, 1].min(), abs=0.003)
    assert len(tried) <= len(plans) + Auto().trials
    note = plan.log[-1]
    assert note.startswith("single ranges by the same distance, ")
    assert "a (" in note or "x (" in note


def test_one_sample_is_not_compared(tmp_path):
    model = network(tmp_path)
    plan = make_grids(model, annotate(model, cpu(), BITS), batches(1), Auto())
    assert len(plan.log) == 1 and plan.log[0].startswith("estimators with the least")


def test_other_calibrators_are_not_compared(tmp_path):
    model = network(tmp_path)
    assert not make_grids(model, annotate(model, cpu(), BITS), batches(), MSE()).log


def test_ranges_are_judged_without_the_error_of_weights(tmp_path):
    """Steps repair what weights cost."""
    model = network(tmp_path)
    context = graph_context(model, dataset=spool_batches(batches(), tmp_path))
    exact = np.zeros(4)
    for bits in (4, 8):
        plan = grids.make_grids(context, annotate(model, cpu(), Bits(weights=bits)), MSE())
        losses = range_choice.range_losses(context, plan)
        exact = exact if exact.any() else losses
        assert bits == 8 or losses.mean() < 0.1 * context.loss(plan)
        np.testing.assert_array_equal(losses, exact)  # whatever the weights' width


def test_trials_that_differ_in_weights_alone_share_the_losses(tmp_path):
    """The shared result is the one that each would compute, and other ranges are computed anew."""
    model = network(tmp_path)
    context = graph_context(model, dataset=spool_batches(batches(), tmp_path))
    search = replace(context, cache=replace(context.cache, shared={}))
    losses = {}
    for name, widths in {"8": (8, 3), "4": (4, 3), "narrow": (4, 2)}.items():
        bits = Bits(weights=widths[0], activations=widths[1])
        plan = grids.make_grids(context, annotate(model, cpu(), bits), MSE())
        losses[name] = range_choice.range_losses(search, plan)
        alone = range_choice.range_losses(context, plan)
        np.testing.assert_array_equal(losses[name], alone)
    assert losses["4"] is losses["8"] and losses["narrow"] is not losses["8"]
