"""RepQ's reparametrization keeps the float function and gives channels the codes of own grids."""

import numpy as np
import pytest
from models import Net, bind, rewritten, run

from qtool.graph.queries import constant
from qtool.quant.bit_widths import Widths
from qtool.quant.primitives import PerTensor, QuantSpec, params_from_range, quantize
from qtool.rewrites.rewrite import Samples
from qtool.rewrites.scaling.reparametrize_norm import common_grid, reparametrize_norm


@pytest.mark.parametrize("width", [0, 1e-6])
def test_known_answer(width):
    """Ranges [-1, 1] and [0, 6]: scales 2 and 6 of mean 4, zero points 1/2 and 0 of mean 1/4.

    A channel that hardly varies keeps its values: its zero point is no number to go towards.
    """
    factor, shift = common_grid(np.array([-1.0, 0.0, 3.0]), np.array([1.0, 6.0, 3.0 + width]))
    assert factor.tolist() == [0.5, 1.5, 1.0]
    assert shift.tolist() == [0.5, -1.5, 0.0]
    ends = [(np.array(x) + shift[:2]) / factor[:2] for x in ([-1.0, 0.0], [1.0, 6.0])]
    assert [e.tolist() for e in ends] == [[-1, -1], [3, 3]]


def test_codes_are_those_of_grids_for_each_channel():
    rng = np.random.default_rng(3)
    x = rng.normal(rng.normal(0, 0.02, 6), rng.uniform(0.05, 8, 6), (500, 6))
    low, high = x.min(0), x.max(0)
    factor, shift = common_grid(low, high)
    y = (x + shift) / factor
    spec = QuantSpec(8, False, False, PerTensor())
    assert y.min() < 0 < y.max()
    codes = quantize(y, params_from_range(y.min(), y.max(), spec))
    own = np.round((x - low) / ((high - low) / 255))
    assert np.abs(codes - own).max() <= 1  # the common zero point is a whole number
    naive = quantize(x, params_from_range(x.min(), x.max(), spec))
    narrow = np.argmin(high - low)
    assert len(np.unique(naive[:, narrow])) < len(np.unique(codes[:, narrow])) / 3


def block(other_reader=False, bias=True) -> Net:
    """A norm with outlier channels, read by two linear layers."""
    net = Net()
    x = net.input("x", "N", 5, 8)
    gamma = np.where(np.arange(8) % 4 == 0, 60.0, 1.0)
    factors = net.const(gamma), net.const(gamma * net.rng.normal(0.5, 0.4, 8))
    x = net.add("LayerNormalization", x, *factors, axis=-1)
    flat = net.add("Reshape", x, net.const(np.array([-1, 8], np.int64)))
    q, k = (
        net.add("Gemm", flat, net.weight(8, 8), *((net.weight(8),) if bias else ()), transB=t)
        for t in (0, 1)
    )
    y = net.add("Add", q, net.add("Sigmoid", k))
    return net.output(net.add("Add", y, flat if other_reader else q, out="y"))


def samples_of(model) -> Samples:
    def observe(names, holdout):
        graph = model.clone()
        values = {v.name: v for n in graph.graph for v in n.outputs}
        for name in names:
            graph.graph.outputs.append(values[name])
        rng = np.random.default_rng(int(holdout))
        values = run(graph, {"x": rng.normal(size=(16, 5, 8)).astype(np.float32)})
        yield {name: values[name] for name in names}

    return Samples(observe, lambda node: Widths(8, 8))


def ready(net: Net):
    model = net.model()
    bind(model, {"x": np.zeros((16, 5, 8), np.float32)})
    rewritten(model, "fold_constants")
    return model


def test_the_function_stays_and_channels_share_their_range():
    model = ready(block())
    samples = samples_of(model)
    x = {"x": np.random.default_rng(2).normal(size=(16, 5, 8)).astype(np.float32)}
    want = run(model, x)["y"]
    assert reparametrize_norm(model, lambda node: True, samples) == 1
    np.testing.assert_allclose(run(model, x)["y"], want, rtol=0, atol=1e-5 * np.abs(want).max())
    name = next(n for n in model.graph if n.op_type == "LayerNormalization").outputs[0].name
    (values,) = samples.observe([name], False)
    rows = values[name].reshape(-1, 8)
    np.testing.assert_allclose(rows.min(0), rows.min(), rtol=1e-4)
    np.testing.assert_allclose(rows.max(0), rows.max(), rtol=1e-4)


@pytest.mark.parametrize("case", ["other reader", "no bias", "float layer"])
def test_what_cannot_be_shifted_is_left(case):
    model = ready(block(other_reader=case == "other reader", bias=case != "no bias"))
    before = [constant(v).copy() for v in model.graph.initializers.values()]
    is_integer = (lambda node: False) if case == "float layer" else (lambda node: True)
    assert reparametrize_norm(model, is_integer, samples_of(model)) == 0
    after = [constant(v) for v in model.graph.initializers.values()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
