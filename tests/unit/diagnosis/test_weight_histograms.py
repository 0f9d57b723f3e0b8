"""Histograms of the weakest layers: every weight counted, every channel's range, the grid's."""

import numpy as np
import pytest
from models import depthwise, frozen_plan

from qtool.diagnosis.weight_histograms import CHANNELS, with_histograms
from qtool.graph.queries import by_name
from qtool.report.render.charts import weight_chart
from qtool.report.schema import Layer


@pytest.fixture
def made():
    model = depthwise().model()
    plan = frozen_plan(model)
    names = [site.name for site in plan.sites.values() if site.weight is not None]
    layers = [Layer(name=n, op="Conv", sqnr_db=40.0 - k) for k, n in enumerate(names)]
    return model, plan, layers


def test_the_weakest_layers_get_one(made):
    model, plan, layers = made
    result = with_histograms(layers, model, plan)
    assert [layer.name for layer in result] == [layer.name for layer in layers]
    weakest = {layer.name for layer in sorted(layers, key=lambda layer: layer.sqnr_db)[:3]}
    assert {layer.name for layer in result if layer.weights is not None} == weakest
    for layer in result:
        if layer.weights is None:
            continue
        weight = plan.sites[layer.name].weight
        array = plan.weight(weight, by_name(model.graph)[weight])
        shown = layer.weights
        assert sum(shown.counts) == array.size
        assert (shown.low, shown.high) == pytest.approx((array.min(), array.max()), rel=1e-5)
        assert max(shown.channels) == pytest.approx(np.abs(array).max(), rel=1e-5)
        assert len(shown.channels) == min(CHANNELS, array.shape[0])
        # The grids of all channels together reach the largest weight.
        assert shown.grid[1] >= np.abs(array).max() * (1 - 1e-5)


def test_layers_without_a_grid_stay_as_they_are(made):
    model, plan, _ = made
    floats = [Layer(name="elsewhere", op="Softmax", sqnr_db=1.0), Layer(name="x", op="Add")]
    assert with_histograms(floats, model, plan) == floats


def test_the_chart_stays_in_its_box(made):
    model, plan, layers = made
    weakest = [layer for layer in with_histograms(layers, model, plan) if layer.weights]
    chart = weight_chart(weakest[0])
    assert all(0 <= b.left <= 100 and b.left + b.width <= 100.1 for b in chart.bins)
    assert max(b.height for b in chart.bins) == 100 and max(chart.channels) == 100
    assert 0 <= chart.grid[0] < chart.grid[1] <= 100
    assert weight_chart(layers[0]) is None
