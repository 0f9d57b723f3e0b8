"""Final integers: biases on s_x * s_w, overflow, dead channels, constants, NaN."""

from dataclasses import replace

import numpy as np
import pytest
from models import (
    Net,
    cpu,
    feeds_for,
    frozen_plan,
    quantized,
    rewritten,
    run,
    sqnr,
    two_convs,
)

from qtool.emitters import emit_qdq
from qtool.errors import DataError
from qtool.graph.queries import constant
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.primitives import PerTensor

BOTH = pytest.mark.parametrize("granularity", ["channel", "tensor"])


@BOTH
def test_a_bias_is_on_the_grid_of_its_products(granularity):
    model = two_convs().model()
    plan = frozen_plan(model, Bits(granularity=granularity))
    s_x, s_w = plan.params("x").scale, plan.params("w").scale
    grid = plan.params("b")
    assert s_w.shape == ((8,) if granularity == "channel" else ())
    np.testing.assert_array_equal(grid.scale, s_x * s_w)
    assert grid.scale.dtype == np.float32 and not grid.zero_point.any()
    bias = constant(model.graph.initializers["b"]).astype(np.float64)
    codes = plan.codes["b"]
    assert codes.dtype == np.int32
    # Rounded once, in float64: never more than half a step away.
    assert np.all(abs(bias - codes * grid.scale.astype(np.float64)) <= grid.scale * 0.5000001)


def test_weights_use_the_narrow_range_and_reach_its_end():
    plan = frozen_plan(two_convs().model())
    codes = plan.codes["w"]
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(np.abs(codes.astype(int)).reshape(8, -1).max(1), 127)


@BOTH
def test_a_bias_too_large_for_int32_widens_its_weights_scale(granularity):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(0, 0.2, (8, 4, 3, 3)), rng.normal(size=8)
    weight[2] *= 1e-9
    bias[2] = 50.0
    if granularity == "tensor":
        weight *= 1e-9
    net = two_convs(weight, bias)
    model = net.model()
    bits = Bits(granularity=granularity)
    plan = frozen_plan(model, bits)
    codes = plan.codes["b"].astype(np.int64)
    assert 2**29 < abs(codes[2]) <= 2**30
    assert any("conv: 1 weight scales widened" in line for line in plan.log)
    value = codes[2] * float(
        plan.params("b").scale.reshape(-1)[2 if granularity == "channel" else 0]
    )
    assert value == pytest.approx(50.0, rel=1e-6)
    feeds = feeds_for(model)
    got = run(emit_qdq(model, plan, cpu()), feeds)["y"]
    # Channel 2 is its bias in both; without the repair it would be clipped to a fraction.
    assert sqnr(run(net.proto(), feeds)["y"], got) > 30


def test_a_bias_that_fits_widens_nothing():
    plan = frozen_plan(two_convs().model())
    assert not any("widened" in line for line in plan.log)


@pytest.mark.parametrize("bias", [0.0, 3.0])
@BOTH
def test_dead_channels_have_finite_scales(granularity, bias):
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.2, (8, 4, 3, 3))
    weight[5] = 0
    biases = np.full(8, bias)
    net = two_convs(weight, biases)
    model = net.model()
    emitted, plan = quantized(model, Bits(granularity=granularity))
    scale = plan.params("w").scale
    assert np.isfinite(scale).all() and (scale > 0).all()
    assert not plan.codes["w"][5].any()
    feeds = feeds_for(model)
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30


@BOTH
def test_the_bias_of_a_channel_without_weights_is_not_rounded_to_the_input_scale(granularity):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(0, 0.2, (8, 4, 3, 3)), rng.normal(size=8)
    weight[slice(None) if granularity == "tensor" else 5] = 0
    plan = frozen_plan(two_convs(weight, bias).model(), Bits(4, 2, granularity=granularity))
    scale = plan.params("b").scale.astype(np.float64)
    bias_values = plan.codes["b"] * scale
    empty = slice(None) if granularity == "tensor" else 5
    np.testing.assert_allclose(bias_values[empty], bias[empty], rtol=1e-5)
    assert np.abs(plan.codes["b"]).max() <= 2**23 + 1
    np.testing.assert_allclose(bias_values, bias, atol=float(scale.max()) / 2 * 1.001)


def test_tied_weights_without_a_weight_take_a_scale_both_biases_fit_on():
    net = Net()
    w, x = net.weight(4, 4, 3, 3, name="w"), net.input("x", "N", 4, 6, 6)
    zeros = net.const(np.zeros((4, 4, 3, 3), np.float32), "zeros")
    large, small = (net.const(np.full(4, v, np.float32), n) for n, v in (("l", 9.0), ("s", 1e-3)))
    x = net.add("Relu", net.add("Conv", x, w, pads=[1] * 4))
    for bias in (large, small):
        x = net.add("Relu", net.add("Conv", x, zeros, bias, pads=[1] * 4))
    net.output(net.add("Conv", x, net.weight(2, 4, 1, 1)))
    plan = frozen_plan(net.model())
    for name, value in (("l", 9.0), ("s", 1e-3)):
        values = plan.codes[name] * plan.params(name).scale.astype(np.float64)
        np.testing.assert_allclose(values, value, rtol=1e-2)


def test_codes_of_tied_weights_are_made_anew_once_where_both_biases_do_not_fit():
    net = Net()
    tied = np.random.default_rng(0).normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32)
    tied[2] *= 1e-9
    x, w = net.input("x", "N", 4, 6, 6), net.const(tied, "tied")
    both = [  # the second bias needs a little more than the first
        net.add("Conv", x, w, net.const(np.asarray([0, 0, value, 0], np.float32)), pads=[1] * 4)
        for value in (500.0, 510.0)
    ]
    model = net.output(net.add("Conv", net.add("Add", *both), net.weight(2, 4, 1, 1))).model()
    plan = frozen_plan(model)
    grid, codes = plan.params("tied"), plan.codes["tied"].copy()
    codes[2] = 100  # learned, on half the scale that the biases fit on
    narrow = replace(grid, scale=np.where(np.arange(4) == 2, grid.scale / 2, grid.scale))
    learned = freeze(
        model, replace(plan, grids={**plan.grids, "tied": narrow}, codes={"tied": codes})
    )
    codes[2] = 50
    np.testing.assert_array_equal(learned.codes["tied"], codes)


def test_a_layer_of_zeros_runs():
    net = two_convs(np.zeros((8, 4, 3, 3)), np.zeros(8))
    emitted, plan = quantized(net.model())
    feeds = feeds_for(net.model())
    assert all(np.isfinite(g.scale).all() for g in plan.grids.values())
    np.testing.assert_allclose(run(emitted, feeds)["y"], run(net.proto(), feeds)["y"], atol=0.02)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
def test_extreme_weights_stay_finite(scale):
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.2, (8, 4, 3, 3)) * scale
    plan = frozen_plan(two_convs(weight, np.zeros(8)).model())
    for name, grid in plan.grids.items():
        assert np.isfinite(grid.scale).all() and (grid.scale > 0).all(), name


def test_constant_operands_get_codes(tmp_path):
    net = two_convs(middle=np.linspace(-1, 3, 8).reshape(8, 1, 1))
    model = net.model()
    plan = frozen_plan(model)
    grid = plan.params("k")
    assert plan.codes["k"].dtype == np.uint8 and grid.spec.granularity == PerTensor()
    back = (plan.codes["k"].astype(float) - grid.zero_point) * grid.scale
    assert np.abs(back.reshape(-1) - np.linspace(-1, 3, 8)).max() <= grid.scale * 0.5001
    assert (plan.codes["k"].min(), plan.codes["k"].max()) == (0, 255)


def test_tied_weights_share_one_array_and_biases_do_not():
    net = Net()
    w, b, x = (
        net.weight(4, 4, 3, 3, name="w"),
        net.weight(4, name="b"),
        net.input("x", "N", 4, 6, 6),
    )
    for _ in range(2):
        x = net.add("Relu", net.add("Conv", x, w, b, pads=[1] * 4))
    model = net.output(net.conv(x, 4, 4, out="y")).model()
    rewritten(model, "split_shared_constants")
    plan = frozen_plan(model)
    sites = [plan.sites["Conv0"], plan.sites["Conv2"]]
    assert {s.weight for s in sites} == {"w"}
    for site in sites:
        np.testing.assert_array_equal(
            plan.params(site.bias).scale, plan.params(site.inputs[0]).scale * plan.params("w").scale
        )
    assert sites[0].bias != sites[1].bias


def test_a_bias_that_widens_a_tied_weight_widens_it_for_both():
    net = Net()
    w, x = net.const(np.random.default_rng(0).normal(0, 1e-9, (4, 4)), "w"), net.input("x", "N", 4)
    x = net.add("Gemm", x, w, net.const(np.zeros(4), "small"), name="a")
    x = net.add("Gemm", x, w, net.const(np.full(4, 20.0), "large"), name="b")
    model = net.output(net.add("Gemm", x, net.weight(4, 3), net.weight(3), out="y")).model()
    plan = frozen_plan(model)
    for site in (plan.sites["a"], plan.sites["b"]):
        scale = plan.params(site.inputs[0]).scale * plan.params("w").scale
        np.testing.assert_array_equal(plan.params(site.bias).scale, scale)
    assert np.abs(plan.codes["large"].astype(np.int64)).max() <= 2**30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "b", "k"])
def test_numbers_that_are_none_are_named(name, bad):
    arrays = {"w": np.ones((8, 4, 3, 3)), "b": np.ones(8), "k": np.ones((8, 1, 1))}
    arrays[name].flat[3] = bad
    model = two_convs(*arrays.values()).model()
    clean = {k: np.ones_like(v) for k, v in arrays.items()}
    plan = frozen_plan(two_convs(*clean.values()).model())
    with pytest.raises(DataError) as caught:
        _weights_and_codes(model, plan, name)
    assert f'"{name}"' in str(caught.value) and caught.value.exit_code == 2


def _weights_and_codes(model, plan, name):
    """What a run does after calibration, on a model whose constant went bad."""
    from dataclasses import replace

    from qtool.annotation.annotator import annotate
    from qtool.quant.freeze import freeze
    from qtool.weights.grids import weight_grids

    fresh = annotate(model, cpu(), Bits())
    grids = {k: plan.grids[k] if k != "w" else g for k, g in fresh.grids.items()}
    freeze(model, weight_grids(model, replace(plan, grids=grids, codes={})))
