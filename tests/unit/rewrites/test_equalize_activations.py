"""Equalized activations keep the float function, and no channel of a small range is left behind."""

import numpy as np
import pytest
from models import Net, bind, run

from qtool.graph.queries import constant
from qtool.quant.bit_widths import Widths
from qtool.rewrites.rewrite import Samples
from qtool.rewrites.scaling.equalize_activations import equalize_activations

CHANNELS = 8
FACTORS = 2.0 ** -np.arange(CHANNELS)


def network(activation: str = "Relu", limit: float = 6.0, second: str = "depthwise") -> Net:
    """Two layers; the channels of the first one have ranges that halve from one to the next."""
    net = Net()
    first = net.rng.normal(size=(CHANNELS, 3, 1, 1)) * FACTORS[:, None, None, None]
    x = net.add("Conv", net.input("x", "N", 3, 6, 6), net.const(first), net.const(0.1 * FACTORS))
    limits = [net.const(0.0), net.const(limit)] if activation == "Clip" else []
    x = net.add(activation, x, *limits, out="a")
    if second == "depthwise":
        x = net.conv(x, CHANNELS, CHANNELS, group=CHANNELS)
    elif second == "pointwise":
        x = net.conv(x, CHANNELS, 4, 1)
    y = net.add("Neg", x, out="y")
    return net.output(net.add("Add", y, "a", out="z") if second == "other reader" else y)


def feeds(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(16, 3, 6, 6)).astype(np.float32)}


def ready(net: Net):
    model = net.model()
    bind(model, feeds(0))
    return model


def samples_of(model, bits: int = 4) -> Samples:
    def observe(names, holdout):
        graph = model.clone()
        values = {v.name: v for n in graph.graph for v in n.outputs}
        graph.graph.outputs.extend(v for n, v in values.items() if n in names)
        yield {name: run(graph, feeds(int(holdout)))[name] for name in names}

    return Samples(observe, lambda node: Widths(bits, bits))


def peaks(model) -> np.ndarray:
    (batch,) = samples_of(model).observe(["a"], False)
    return batch["a"].max((0, 2, 3))


def test_in_front_of_a_depthwise_layer_all_channels_get_one_range():
    model = ready(network())
    want = run(model, feeds(5))["y"]
    before = peaks(model)
    assert equalize_activations(model, lambda node: True, samples_of(model)) == 1
    np.testing.assert_allclose(run(model, feeds(5))["y"], want, atol=1e-5 * np.abs(want).max())
    after = peaks(model)
    assert before.max() / before.min() > 50
    # The last two channels are more than 64 times smaller, where the factor ends.
    np.testing.assert_allclose(after[:6], after[0], rtol=1e-3)
    assert model.meta["equalize_activations"] == "alpha 1 to 1 for 1 of 1 groups of channels"


def test_in_front_of_a_pointwise_layer_weights_are_weighed_too():
    """Scaled weights share a step: the exponent is where both errors together are least."""
    model = ready(network(second="pointwise"))
    want = run(model, feeds(5))["y"]
    equalize_activations(model, lambda node: True, samples_of(model))
    np.testing.assert_allclose(run(model, feeds(5))["y"], want, atol=1e-5 * np.abs(want).max())


def test_a_clip_changes_no_sample_and_stays_where_it_is_reached():
    limit = 1.0
    model = ready(network("Clip", limit))
    first = constant(next(n for n in model.graph if n.op_type == "Conv").inputs[1]).copy()
    want, reached = run(model, feeds(0))["y"], peaks(model) == limit
    assert reached.any() and not reached.all()
    assert equalize_activations(model, lambda node: True, samples_of(model)) == 1
    np.testing.assert_allclose(run(model, feeds(0))["y"], want, atol=1e-5 * np.abs(want).max())
    node = next(n for n in model.graph if n.op_type == "Conv")
    same = (constant(node.inputs[1]) == first).all((1, 2, 3))
    assert same[reached].all() and not same[~reached].any()
    assert peaks(model).max() <= limit * (1 + 1e-5)


@pytest.mark.parametrize("reason", ["other reader", "float layer", "upper limit unknown"])
def test_channels_that_cannot_be_scaled_are_left(reason):
    if reason == "upper limit unknown":
        net = network("Clip", -1.0)
    else:
        net = network(second="other reader" if reason == "other reader" else "depthwise")
    model = ready(net)
    before = [constant(v).copy() for v in model.graph.initializers.values()]
    samples = samples_of(model)
    assert equalize_activations(model, lambda node: reason != "float layer", samples) == 0
    after = [constant(v) for v in model.graph.initializers.values()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_dead_channels_stay():
    net = network()
    model = ready(net)
    node = next(n for n in model.graph if n.op_type == "Conv")
    weight = constant(node.inputs[1]).copy()
    weight[3] = 0
    from qtool.rewrites.scaling.equalize import replace_array

    replace_array(node.inputs[1], weight)
    bias = constant(node.inputs[2]).copy()
    bias[3] = -1
    replace_array(node.inputs[2], bias)
    equalize_activations(model, lambda node: True, samples_of(model))
    assert constant(node.inputs[2])[3] == -1
    assert all(np.isfinite(constant(v)).all() for v in model.graph.initializers.values())
