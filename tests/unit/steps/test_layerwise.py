"""Inputs of layers in both networks are those of whole runs, rounded as everywhere else."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import BUILDERS, Net

from qtool.quant.bit_widths import Bits
from qtool.runtime import executor, schedule
from qtool.runtime.chunk_threads import map_chunks
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.steps import value_store
from qtool.steps.layerwise import LayerwiseRun, Lifetimes


@pytest.mark.parametrize("holdout", [False, True])
@pytest.mark.parametrize("name", BUILDERS)
def test_inputs_are_those_of_whole_runs(name, holdout):
    plan, context = calibrated(BUILDERS[name](), Bits(weights=4), rows=70)
    float_network, quantized = Executor(context.model), Simulation(context.model, plan)
    seen = 0
    with LayerwiseRun(context, plan, "test", holdout=holdout) as run:
        for site in run.sites():
            read = site.inputs[0]
            pairs = list(run.inputs(site))
            rows = sum(len(x) for x, _ in pairs)
            assert rows > 0 and rows % context.fit.count == 0  # no sample twice
            for (x_float, x_quantized), (feeds, valid) in zip(
                pairs, context.feeds(context.fit), strict=True
            ):
                feeds = {key: array[:valid] for key, array in feeds.items()}
                with torch.inference_mode():
                    assert torch.equal(x_float, float_network(feeds, None, [read])[read])
                assert torch.equal(x_quantized, quantized(feeds, [read])[read])
            seen += 1
    assert seen == sum(site.weight is not None for site in plan.sites.values())


def test_a_selection_is_rounded_as_the_whole():
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=20)
    with LayerwiseRun(context, plan, "test") as run:
        for site in run.sites():
            whole, part = (
                torch.cat([x for _, x in run.inputs(site, select)])
                for select in (None, lambda chunk, pair: tuple(x[:, :2] for x in pair))
            )
            assert torch.equal(whole[:, :2], part) and run.chunks == 1


def test_inputs_are_selected_on_all_threads_also_as_chunks_of_another_call():
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=20)
    names, before = [], torch.get_num_threads()

    def select(chunk, pair):
        names.append(threading.current_thread().name)
        return pair

    torch.set_num_threads(2)
    try:
        with LayerwiseRun(context, plan, "test") as run:
            site = next(run.sites())
            list(map_chunks(lambda pair: pair, run.inputs(site, select)))
    finally:
        torch.set_num_threads(before)
    assert names and all(name.startswith("qtool-chunk") for name in names)


@pytest.mark.parametrize(("samples", "count"), [(None, 15), (100, 15), (5, 5), (1, 1)])
def test_samples_are_evenly_spaced(samples, count):
    plan, context = calibrated(BUILDERS["residual"](), rows=20)
    assert context.fit.count == 15
    with LayerwiseRun(context, plan, "test", samples) as run:
        assert run.dataset.count == count == len(set(run.dataset.names))
        site = next(run.sites())
        assert sum(len(x) for x, _ in run.inputs(site)) == count


def test_values_on_disk_are_those_in_memory(monkeypatch):
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=70)
    inputs = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(value_store, "MEMORY_LIMIT", limit)
        with LayerwiseRun(context, plan, "test") as run:
            inputs.append([x for site in run.sites() for pair in run.inputs(site) for x in pair])
    assert len(inputs[0]) == len(inputs[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*inputs, strict=True))


def test_a_plan_that_is_assigned_holds_from_the_next_layer_on():
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=20)
    with LayerwiseRun(context, plan, "test") as run:
        first = next(run.sites())
        before = [y.clone() for _, y in run.outputs(first)]
        assert first.bias is not None
        bias = np.full(before[0].shape[1], 9, np.float32)
        run.plan = replace(plan, weight_overrides={first.bias: bias})
        after = [y for _, y in run.outputs(first)]
    assert all((a - b).abs().max() > 1 for a, b in zip(after, before, strict=True))


def test_the_work_of_a_layer_does_not_grow_with_the_graph(monkeypatch):
    """Scheduled are the nodes between two layers, and the graph is looked through once."""
    scheduled, indexes = [], []
    assemble, index = schedule._assemble, schedule.GraphIndex

    def counted(needed, *rest):
        scheduled.append(len(needed))
        return assemble(needed, *rest)

    monkeypatch.setattr(schedule, "_assemble", counted)
    monkeypatch.setattr(executor, "GraphIndex", lambda graph: indexes.append(0) or index(graph))
    net = Net()
    x = net.input("x", "N", 3, 4, 4)
    for k in range(12):
        x = net.add("Relu", net.conv(x, 4 if k else 3, 4, 1))
    plan, context = calibrated(net.output(x), rows=8)
    with LayerwiseRun(context, plan, "test") as run:
        assert len(list(run.sites())) == 12
    assert 2 * 11 <= len(scheduled) <= 2 * 12 and max(scheduled) <= 2
    assert len(indexes) <= 2  # of the float and of the quantized network


def test_values_live_from_where_they_are_made_to_their_last_reader():
    net = Net()
    x = net.input("x", "N", 4, 4, 4)
    a = net.add("Relu", x)
    b = net.add("Sigmoid", a)
    net.output(net.add("Add", net.add("Mul", b, x), a))
    lives = Lifetimes(net.model().graph)
    assert [sorted(lives.alive(cut)) for cut in range(5)] == [
        ["x"],
        ["v0", "x"],
        ["v0", "v1", "x"],
        ["v0", "v2"],
        [],
    ]
