"""Layers side by side: their inputs are those of the two whole networks, wherever they lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import BUILDERS, bind, feeds_for, graph_context, make_grids, make_plan, rewritten

from qtool.calibration import MinMax
from qtool.data.spool import spool_batches
from qtool.quant.bit_widths import Bits
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.steps import layerwise
from qtool.steps.layerwise import LayerwiseRun

BITS = Bits(4, 8)


def prepared(name, folder):
    model = BUILDERS[name]().load(folder)
    feeds = feeds_for(model, seed=1)
    bind(model, feeds)
    rewritten(model)
    batches = [{k: np.concatenate([v] * 4) for k, v in feeds.items()}]
    plan = make_grids(model, make_plan(model, None, BITS), batches, MinMax())
    return plan, graph_context(model, bits=BITS, dataset=spool_batches(batches, folder))


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_inputs_are_those_of_the_whole_networks(name, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(layerwise, "MEMORY_LIMIT", limit)
    plan, context = prepared(name, tmp_path)
    sites = [site for site in plan.sites.values() if site.weight is not None]
    names = [site.inputs[0] for site in sites]
    feeds = [batch for batch, _ in context.feeds(context.fit)]
    whole, float_run = Simulation(context.model, plan), Executor(context.model)
    with torch.inference_mode():
        expected = [(float_run(f, outputs=names), whole(f, names)) for f in feeds]
    seen = 0
    with LayerwiseRun(context, plan, "test") as run:
        for site in run.sites():
            for (x_float, x_quantized), (floats, rounded) in zip(
                run.inputs(site), expected, strict=True
            ):
                torch.testing.assert_close(x_float, floats[site.inputs[0]])
                torch.testing.assert_close(x_quantized, rounded[site.inputs[0]])
            seen += 1
    assert seen == len(sites)


def test_a_plan_that_is_assigned_holds_from_the_next_layer_on(tmp_path):
    plan, context = prepared("residual", tmp_path)
    with LayerwiseRun(context, plan, "test") as run:
        sites = run.sites()
        first = next(sites)
        before = [y.clone() for _, y in run.outputs(first)]
        assert first.bias is not None
        bias = np.full(before[0].shape[1], 9, np.float32)
        run.plan = replace(plan, weight_overrides={first.bias: bias})
        after = [y for _, y in run.outputs(first)]
    assert all((a - b).abs().max() > 1 for a, b in zip(after, before, strict=True))
