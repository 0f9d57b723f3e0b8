"""SmoothQuant keeps the float function, lowers the error, and leaves channels others read."""

import numpy as np
import pytest
from models import Net, bind, rewritten, run

from qtool.graph.queries import constant
from qtool.quant.bit_widths import Widths
from qtool.rewrites.rewrite import Samples
from qtool.rewrites.scaling.smooth import smooth, smoothing_scales


def test_known_answer():
    assert smoothing_scales(np.array([16.0]), np.array([1.0]), 0.5).tolist() == [4.0]
    assert smoothing_scales(np.array([0.0, 1.0]), np.array([1.0, 0.0]), 0.5).tolist() == [1, 1]


def block(other_reader: bool = False, norm: bool = True) -> Net:
    """A norm (or a linear layer and Relu) with outlier channels, read by two linear layers."""
    net = Net()
    x = net.input("x", "N", 5, 8)
    outliers = np.where(np.arange(8) % 4 == 0, 60.0, 1.0)
    if norm:
        factors = net.const(outliers), net.const(outliers * net.rng.normal(0, 0.1, 8))
        x = net.add("LayerNormalization", x, *factors, axis=-1)
    else:
        x = net.add("MatMul", x, net.const(net.rng.normal(size=(8, 8)) * outliers))
        x = net.add("Relu", net.add("Add", x, net.const(outliers * 0.1)))
    q, k = (net.add("MatMul", x, net.weight(8, 8)) for _ in range(2))
    y = net.add("Add", q, net.add("Sigmoid", k))
    return net.output(net.add("Add", y, x, out="y") if other_reader else net.add("Neg", y, out="y"))


def samples_of(model) -> Samples:
    def observe(names, holdout):
        graph = model.clone()
        values = {v.name: v for n in graph.graph for v in n.outputs}
        for name in names:
            if not values[name].is_graph_output():
                graph.graph.outputs.append(values[name])
        rng = np.random.default_rng(int(holdout))
        values = run(graph, {"x": rng.normal(size=(16, 5, 8)).astype(np.float32)})
        yield {name: values[name] for name in names}

    return Samples(observe, lambda node: Widths(8, 8))


def ready(net: Net, *rewrites: str):
    model = net.model()
    bind(model, {"x": np.zeros((16, 5, 8), np.float32)})
    if rewrites:
        rewritten(model, *rewrites)
    return model


@pytest.mark.parametrize("norm", [True, False])
def test_the_function_stays_and_outliers_go(norm):
    model = ready(block(norm=norm), "matmul_to_gemm")
    samples = samples_of(model)
    x = {"x": np.random.default_rng(2).normal(size=(4, 5, 8)).astype(np.float32)}
    want = run(model, x)["y"]
    assert smooth(model, lambda node: True, samples) == 1
    np.testing.assert_allclose(run(model, x)["y"], want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert "alpha" in model.meta["smooth"]
    node = next(n for n in model.graph if n.op_type in ("LayerNormalization", "Relu"))
    name = node.outputs[0].name
    (values,) = samples.observe([name], True)
    peaks = np.abs(values[name]).max((0, 1))
    assert peaks.max() / np.median(peaks) < 20


def rounded(x, low, high, codes):
    """Values on a grid of ``codes`` steps over a range with 0 in it; the zero point is a code."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = (high - low) / codes
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, codes) - zero) * scale


def test_alpha_is_the_minimum_of_the_measured_error_over_the_grid():
    model = ready(block())
    samples = samples_of(model)
    readers = [n for n in model.graph if n.op_type == "MatMul"]
    name, weights = readers[0].inputs[0].name, [constant(n.inputs[1]) for n in readers]
    assert [n.inputs[0].name for n in readers] == [name] * 2
    fit, held_out = (
        next(iter(samples.observe([name], part)))[name].reshape(-1, 8).astype(float)
        for part in (False, True)
    )
    w_peak = np.abs(np.concatenate(weights, 1)).max(1)
    errors = {}
    for alpha in np.round(np.arange(0, 1.01, 0.05), 2):
        s = np.abs(fit).max(0) ** alpha / w_peak ** (1 - alpha)
        x = rounded(held_out / s, (fit / s).min(), (fit / s).max(), 255)
        errors[f"{alpha:g}"] = 0.0
        for w in weights:
            scale = np.abs(w * s[:, None]).max(0) / 127
            y = held_out @ w
            error = x @ (np.round(w * s[:, None] / scale) * scale) - y
            errors[f"{alpha:g}"] += (error**2).sum() / (y**2).sum()
    assert smooth(model, lambda node: True, samples) == 1
    best = min(errors, key=errors.__getitem__)
    assert model.meta["smooth"].startswith(f"alpha {best} ")
    assert sorted(errors.values())[1] > 1.001 * errors[best]  # no tie that rounding decides


@pytest.mark.parametrize("op", ["other reader", "float layer"])
def test_channels_that_others_read_are_left(op):
    model = ready(block(other_reader=op == "other reader"))
    before = [constant(v).copy() for v in model.graph.initializers.values()]
    assert smooth(model, lambda node: op == "other reader", samples_of(model)) == 0
    after = [constant(v) for v in model.graph.initializers.values()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_network_without_linear_layers_reads_no_sample():
    net = Net()
    net.output(net.conv(net.input("x", "N", 3, 4, 4), 3, 4, out="y"))
    assert smooth(net.model(), lambda node: True, Samples(None, None)) == 0
