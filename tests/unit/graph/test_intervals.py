"""Interval arithmetic holds for every input, and is tight where one input reaches the bound."""

import numpy as np
import pytest
from models import Net, bind, run

from qtool.graph.intervals import intervals


@pytest.mark.parametrize("group", [1, 2, 4])
def test_bounds_hold_and_unbounded_inputs_have_none(group):
    net = Net()
    raw = net.conv(net.input("x", "N", 4, 5, 5), 4, 4, out="raw")
    x = net.add("Clip", raw, net.const(0.0), net.const(6.0), out="clipped")
    y = net.conv(x, 4, 8, group=group, out="y")
    z = net.add("GlobalAveragePool", net.add("Relu", y), out="z")
    model = net.output(raw, x, y, z).model()
    feeds = {"x": np.random.default_rng(0).normal(0, 9, (32, 4, 5, 5)).astype(np.float32)}
    bind(model, feeds)
    bounds = {value.name: interval for value, interval in intervals(model.graph).items()}
    assert np.isinf(bounds["raw"].upper).all() and bounds["clipped"].upper.tolist() == [6] * 4
    for name, array in run(model, feeds).items():
        assert (array.max((0, 2, 3)) <= bounds[name].upper + 1e-5).all()
        assert (array.min((0, 2, 3)) >= bounds[name].lower - 1e-5).all()


def test_known_answer():
    """Weights 2 and -1 on [0, 6], bias 1: from -5 to 13."""
    net = Net()
    x = net.add("Clip", net.input("x", "N", 2, 1, 1), net.const(0.0), net.const(6.0))
    x = net.add("Conv", x, net.const([[[[2.0]], [[-1.0]]]]), net.const([1.0]), out="y")
    (bounds,) = (b for v, b in intervals(net.output(x).model().graph).items() if v.name == "y")
    assert (bounds.lower.tolist(), bounds.upper.tolist()) == ([-5.0], [13.0])
