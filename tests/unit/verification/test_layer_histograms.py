"""Measured layers: every value counted, every channel's range, the grid's, and noise adding up."""

import numpy as np
import pytest
from models import depthwise, feeds_for, frozen_plan

import qtool.verification.layers.histograms as histograms
from qtool.graph.queries import by_name
from qtool.report.layer_schema import Layer
from qtool.verification.layers.measure import InputValues
from qtool.verification.layers.noise import measure_layers

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def made():
    model = depthwise().model()
    plan = frozen_plan(model)
    names = [site.name for site in plan.sites.values() if site.weight is not None]
    layers = [Layer(name=n, op="Conv", sqnr_db=40.0 - k) for k, n in enumerate(names)]
    measures = measure_layers(model, plan, [feeds_for(model, seed=3)])
    return model, plan, layers, measures


def test_every_weight_is_counted_and_the_grid_reaches_the_largest(made):
    model, plan, layers, measures = made
    result = histograms.with_measures(layers, model, plan, measures)
    assert [layer.name for layer in result] == [layer.name for layer in layers]
    for layer in result:
        weight = plan.sites[layer.name].weight
        array, shown = plan.weight(weight, by_name(model.graph)[weight]), layer.weights
        assert sum(shown.counts) == array.size
        assert (shown.low, shown.high) == pytest.approx((array.min(), array.max()), rel=1e-5)
        assert max(shown.channels) == pytest.approx(np.abs(array).max(), rel=1e-3)
        assert len(shown.channels) == min(histograms.CHANNELS, array.shape[0])
        assert shown.grid[1] >= np.abs(array).max() * (1 - 1e-5)
        grid = plan.params(plan.sites[layer.name].inputs[0])
        assert layer.inputs.grid == pytest.approx((grid.lo.item(), grid.hi.item()), rel=1e-5)


def test_weights_that_float32_cannot_divide_have_a_histogram(made):
    model, plan, layers, _ = made
    name = plan.sites[layers[0].name].weight
    array = np.full(plan.weight(name, by_name(model.graph)[name]).shape, 3e38, np.float32)
    array.flat[0] = np.nextafter(array.flat[0], np.float32(0))
    shown = histograms.weight_histogram(array, 0, plan, name)
    assert shown.counts[0] == 1 and shown.counts[-1] == array.size - 1


def test_weights_are_read_up_to_a_limit_the_weakest_first(made, monkeypatch):
    model, plan, layers, measures = made
    monkeypatch.setattr(histograms, "WEIGHTS", 1)
    result = histograms.with_measures(layers, model, plan, measures)
    assert [layer.name for layer in result if layer.weights] == [layers[-1].name]


def test_layers_without_a_grid_stay_as_they_are(made):
    model, plan, _, measures = made
    floats = [Layer(name="elsewhere", op="Softmax", sqnr_db=1.0), Layer(name="x", op="Add")]
    assert histograms.with_measures(floats, model, plan, measures) == floats


def test_the_first_layer_has_no_noise_before_it(made):
    _, plan, layers, measures = made
    first = measures[layers[0].name]
    assert plan.sites[layers[0].name].inputs[0] == "x"
    assert first.cumulative.db == pytest.approx(first.alone.db, abs=1e-9)
    last = measures[layers[-1].name]
    assert last.cumulative.db < last.alone.db


def test_inputs_of_several_batches_add_up(made):
    _, plan, layers, _ = made
    params = plan.params(plan.sites[layers[0].name].inputs[0])
    values = InputValues(params, axis=1)
    high = float(params.hi)
    batches = [RNG.normal(0, high / 3, (2, 3, 5, 5)).astype(np.float32) for _ in range(3)]
    batches[1][0, 2, 0, 0] = 4 * high
    for batch in batches:
        values.add(batch)
    shown, every = histograms.input_histogram(values), np.concatenate(batches)
    half = float(params.scale) / 2
    outside = (every < params.lo - half) | (every > params.hi + half)
    assert outside.sum() >= 1 and shown.outside == pytest.approx(outside.mean(), rel=1e-3)
    assert sum(shown.counts) == every.size and 8 <= len(shown.counts) <= histograms.BINS
    assert shown.low <= every.min() and every.max() <= shown.high
    assert shown.channels == pytest.approx(np.abs(every).max((0, 2, 3)), rel=1e-3)
