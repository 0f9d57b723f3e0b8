"""Bias correction: the mean of every layer's output is that of the float network afterwards."""

import numpy as np
import torch
from contexts import keep_every_layer
from models import Net, feeds_for, graph_context, make_grids, make_plan, rewritten

from qtool.calibration import MinMax, Percentile
from qtool.data.spool import spool_batches
from qtool.ptq.bias_correction import BiasCorrection
from qtool.quant.bit_widths import Bits
from qtool.rewrites.folding.add_bias import add_bias
from qtool.runtime.executor import Executor
from qtool.steps.layerwise import LayerwiseRun
from qtool.steps.row_weights import row_power, row_weights, typical_power

BITS = Bits(3, 8)


def prepared(folder, bias=True):
    net = Net(opset=21)
    x = net.input("x", "N", 3, 8, 8)
    for channels, filters in ((3, 8), (8, 8)):
        weight = net.weight(filters, channels, 3, 3)
        more = (net.weight(filters),) if bias else ()
        x = net.add("Relu", net.add("Conv", x, weight, *more, pads=[1] * 4))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    more = (net.weight(5),) if bias else ()
    net.output(net.add("Gemm", x, net.weight(5, 8), *more, transB=1, out="y"))
    model = net.load(folder)
    rewritten(model)
    added = add_bias(model, lambda node: True)
    batches = [feeds_for(model, seed=1, rows=40)]
    plan = make_grids(model, make_plan(model, None, BITS), batches, MinMax())
    return plan, graph_context(model, bits=BITS, dataset=spool_batches(batches, folder)), added


def mean_errors(plan, context) -> list[float]:
    """The largest weighted mean error of a channel, in deviations of the output, by layer."""
    errors = []
    with LayerwiseRun(context, plan, "test") as run:
        for site in run.sites():
            pairs = list(run.outputs(site))
            axis = 1 if site.op == "Conv" else -1
            y, q = (torch.cat([p[k] for p in pairs]) for k in (0, 1))
            # The typical power is that of the first chunk.
            typical = typical_power(row_power(pairs[0][0], axis))
            weights = row_weights(row_power(y, axis), typical)
            error = (weights * (y - q)).movedim(axis, 0).flatten(1).sum(1) / weights.sum()
            errors.append(float((error.abs() / y.std()).max()))
    return errors


def test_mean_outputs_are_those_of_the_float_network(tmp_path, monkeypatch):
    keep_every_layer(monkeypatch)
    plan, context, added = prepared(tmp_path)
    assert added == 0
    before = mean_errors(plan, context)
    result = BiasCorrection()(plan, context)
    after = mean_errors(result.plan, context)
    assert max(before) > 0.01
    assert max(after) < 1e-4
    assert result.metrics["layers"] == 3
    assert context.loss(result.plan) < context.loss(plan)


def test_layers_without_a_bias_get_one(tmp_path, monkeypatch):
    keep_every_layer(monkeypatch)
    plan, context, added = prepared(tmp_path, bias=False)
    assert added == 3
    assert max(mean_errors(BiasCorrection()(plan, context).plan, context)) < 1e-4


def test_a_bias_of_zeros_changes_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    model = Net(opset=21)
    y = model.add("Conv", model.input("x", "N", 3, 8, 8), model.weight(4, 3, 1, 1), out="y")
    graph = model.output(y).load(tmp_path / "a")
    feeds = feeds_for(graph, seed=1)
    with torch.inference_mode():
        before = Executor(graph)(feeds)["y"].numpy().copy()
        assert add_bias(graph, lambda node: False) == 0
        assert add_bias(graph, lambda node: True) == 1
        np.testing.assert_array_equal(Executor(graph)(feeds)["y"].numpy(), before)
    assert add_bias(graph, lambda node: True) == 0


def test_one_massive_position_does_not_shift_the_others(tmp_path):
    """The range clips it, so that it has nearly all of the error; the plain mean would move all."""
    net = Net(opset=21)
    x = net.input("x", "N", 3, 8, 8)
    net.output(net.add("Conv", x, net.weight(8, 3, 1, 1), net.weight(8), out="y"))
    model = net.load(tmp_path)
    rewritten(model)
    feeds = feeds_for(model, seed=1, rows=40)
    feeds["x"][:, :, 0, 0] *= 200
    feeds["x"][:, :, 0, 0] += 200  # errors of both signs would cancel
    plan = make_grids(model, make_plan(model, None, BITS), [feeds], Percentile(q=0.95))
    context = graph_context(model, bits=BITS, dataset=spool_batches([feeds], tmp_path))
    before, after = (
        np.abs(context.outputs(context.holdout) - context.outputs(context.holdout, each))
        for each in (plan, BiasCorrection()(plan, context).plan)
    )
    assert np.median(before[:, :, 0, 0]) > 10 * np.median(before)
    assert np.median(after[:, :, 1:]) < 1.1 * np.median(before[:, :, 1:])
