"""Equalization keeps the float function, makes ranges equal, and stops where it is not exact."""

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
import torch
from models import BUILDERS, Net, bind, changed, cpu, feeds_for, frozen_plan, rewritten, run, sqnr

from qtool.emitters import emit_qdq
from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.layers import oriented
from qtool.graph.queries import constant
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers.lsq import LSQ
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.rewrites import REWRITES, rewrite_names
from qtool.rewrites.scaling.equalize import balancing_step, equalize


def ranges(node: ir.Node, of_inputs: bool = False) -> np.ndarray:
    """Largest |W| per output or input channel; depthwise has one input channel each."""
    magnitudes = np.abs(oriented(node, constant(node.inputs[1]))).max(3)
    return magnitudes.max(1 if of_inputs else 2).reshape(-1)


def scaled(net: Net, x: str, c_in: int, c_out: int, k: int = 1, **attributes) -> str:
    """A Conv whose rows and columns have ranges that differ by factors up to 400."""
    rng, group = net.rng, int(attributes.get("group", 1))
    weight = rng.normal(0, 1, (c_out, c_in // group, k, k))
    weight *= np.exp(rng.uniform(-3, 3, (c_out, 1, 1, 1)))
    weight *= np.exp(rng.uniform(-3, 3, (1, c_in // group, 1, 1)))
    attributes.setdefault("pads", [k // 2] * 4)
    return net.add("Conv", x, net.const(weight), net.weight(c_out), **attributes)


def test_known_answer_of_a_pair():
    net = Net()
    x = net.add("Conv", net.input("x", "N", 1, 2, 2), net.const([[[[8.0]]]]), net.const([1.0]))
    x = net.add("Conv", net.add("Relu", x), net.const([[[[2.0]]]]), net.const([1.0]), out="y")
    model, count = changed(net.output(x), "equalize")
    convs = [n for n in model.graph if n.op_type == "Conv"]
    assert count == 2
    assert [float(constant(c.inputs[1]).item()) for c in convs] == [4.0, 4.0]
    assert [float(constant(c.inputs[2]).item()) for c in convs] == [0.5, 1.0]


def test_known_answer_of_the_three_layer_form():
    net = Net()
    x = net.input("x", "N", 1, 2, 2)
    for range_ in (8.0, 1.0, 27.0):
        x = net.add("Relu", net.add("Conv", x, net.const([[[[range_]]]]), net.weight(1)))
    model, _ = changed(net.output(x), "equalize")
    weights = [constant(n.inputs[1]).item() for n in model.graph if n.op_type == "Conv"]
    np.testing.assert_allclose(weights, 6, rtol=1e-3)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_function_stays(name):
    rewrites = rewrite_names(["equalize"], cpu().rewrites)
    changed(BUILDERS[name](), *rewrites)


def between(net: Net, x: str, op: str) -> str:
    """Something between two layers of eight channels that positive factors commute with."""
    if op == "PRelu":
        return net.add("PRelu", x, net.const(net.rng.normal(size=(8, 1, 1))))
    if op == "LeakyRelu":
        return net.add("LeakyRelu", x, alpha=0.3)
    if op in ("MaxPool", "AveragePool"):
        return net.add(op, x, kernel_shape=[3, 3], pads=[1] * 4)
    if op == "Pad":
        return net.add("Pad", x, net.const(np.array([0, 0, 1, 0, 0, 0, 0, 2])), net.const(0.0))
    if op == "Slice":
        limits = [net.const(np.array(v)) for v in ([0, 0], [99, 99], [2, 3], [2, 2])]
        return net.add("Slice", x, *limits)
    if op == "Concat":
        parts = [net.add("Relu", x), net.add("MaxPool", x, kernel_shape=[1, 1])]
        return scaled(net, net.add("Concat", *parts, axis=1), 16, 8)
    if op == "Reshape":
        flat = net.add("Reshape", x, net.const(np.array([0, 0, -1])))
        return net.add("Reshape", flat, net.const(np.array([0, 0, 6, 6])))
    if op == "depthwise":
        return net.add("Relu", scaled(net, x, 8, 8, 3, group=8))
    if op == "multiplier":
        return scaled(net, scaled(net, x, 8, 16, 3, group=8), 16, 8)
    if op == "grouped":
        return scaled(net, x, 8, 8, 3, group=2)
    if op == "ConvTranspose":
        w = net.const(
            net.rng.normal(size=(8, 8, 3, 3)) * np.exp(net.rng.uniform(-3, 3, (8, 1, 1, 1)))
        )
        return net.add("ConvTranspose", x, w, pads=[1] * 4)
    return net.add(op, x)


OPS = ("Relu", "Identity", "PRelu", "LeakyRelu", "MaxPool", "AveragePool", "Pad", "Slice", "Concat")
OPS += ("Reshape", "depthwise", "multiplier", "grouped", "ConvTranspose")


@pytest.mark.parametrize("op", OPS)
def test_ranges_are_equal_behind_every_op_that_keeps_channels(op):
    net = Net()
    x = scaled(net, net.input("x", "N", 3, 6, 6), 3, 8)
    net.output(scaled(net, between(net, x, op), 8, 4, out="y"))
    model, count = changed(net, "equalize")
    layers = [n for n in model.graph if n.op_type.startswith("Conv")]
    assert count == len(layers)
    if len(layers) == 2 or op in ("depthwise", "grouped", "ConvTranspose"):
        for first, second in pairwise(layers):
            np.testing.assert_allclose(ranges(first), ranges(second, True), rtol=3e-3)


def test_channels_of_a_flattened_map_have_several_columns():
    net = Net()
    x = net.add("Relu", scaled(net, net.input("x", "N", 3, 2, 2), 3, 8))
    weight = net.const(net.rng.normal(size=(5, 32)) * np.exp(net.rng.uniform(-3, 3, (1, 32))))
    x = net.add("Gemm", net.add("Flatten", x), weight, net.weight(5), transB=1, out="y")
    model, count = changed(net.output(x), "equalize")
    conv, gemm = (n for n in model.graph if n.op_type in ("Conv", "Gemm"))
    assert count == 2
    np.testing.assert_allclose(ranges(conv), ranges(gemm, True).reshape(8, 4).max(1), rtol=3e-3)


@pytest.mark.parametrize("rewrites", [("equalize",), ("matmul_to_gemm", "equalize")])
def test_linear_layers_on_tokens(rewrites):
    net = Net()
    x = net.add("MatMul", net.input("x", "N", 5, 4), net.weight(4, 6))
    net.output(net.add("MatMul", net.add("Relu", x), net.weight(6, 3), out="y"))
    model, count = changed(net, *rewrites)
    first, second = (n for n in model.graph if n.op_type in ("MatMul", "Gemm"))
    assert count == 2
    np.testing.assert_allclose(ranges(first), ranges(second, True), rtol=3e-3)


def test_branches_of_a_residual_sum_are_scaled_together():
    net = Net()
    x = net.add("Relu", scaled(net, net.input("x", "N", 3, 6, 6), 3, 8))
    z = scaled(net, net.add("Relu", scaled(net, x, 8, 8, 3)), 8, 8, 3)
    net.output(scaled(net, net.add("Relu", net.add("Add", z, x)), 8, 4, out="y"))
    model, count = changed(net, "equalize")
    convs = [n for n in model.graph if n.op_type == "Conv"]
    assert count == 4
    written = np.maximum(ranges(convs[0]), ranges(convs[2]))
    read = np.maximum(ranges(convs[1], True), ranges(convs[3], True))
    np.testing.assert_allclose(written, read, rtol=3e-3)


def blocked(net: Net, x: str, how: str) -> str:
    if how == "output":
        net.output(x)
        return net.add("Relu", x)
    if how == "second reader":
        net.output(net.add("Sigmoid", x))
        return net.add("Relu", x)
    if how == "added constant":
        return net.add("Add", x, net.const(np.ones((1, 8, 1, 1))))
    if how == "clip":
        return net.add("Clip", x, net.const(0.0), net.const(6.0))
    if how == "filled pad":
        return net.add("Pad", x, net.const(np.array([0, 0, 1, 0, 0, 0, 0, 2])), net.const(1.0))
    return net.add(how, x)


HOW = (
    "output",
    "second reader",
    "added constant",
    "clip",
    "filled pad",
    "Sigmoid",
    "Softmax",
    "Erf",
)


@pytest.mark.parametrize("how", HOW)
def test_nothing_is_scaled_where_it_would_change_the_function(how):
    net = Net()
    x = scaled(net, net.input("x", "N", 3, 6, 6), 3, 8)
    net.output(scaled(net, blocked(net, x, how), 8, 4, out="y"))
    _, count = changed(net, "equalize")
    assert count == 0


def test_tied_weights_are_left_alone():
    net = Net()
    w, x = net.weight(4, 4, 3, 3), net.input("x", "N", 4, 5, 5)
    for _ in range(2):
        x = net.add("Relu", net.add("Conv", x, w, pads=[1] * 4))
    _, count = changed(net.output(x), "equalize")
    assert count == 0


def test_channels_of_zeros_and_huge_ratios_stay_finite():
    net = Net()
    first = np.array([0.0, 1e-30, 1e3, 1.0]).reshape(4, 1, 1, 1)
    second = np.array([1.0, 1e3, 1e-30, 0.0]).reshape(1, 4, 1, 1)
    x = net.add("Conv", net.input("x", "N", 1, 3, 3), net.const(first), net.weight(4))
    net.output(net.add("Conv", net.add("Relu", x), net.const(second), out="y"))
    model, _ = changed(net, "equalize")
    assert all(np.isfinite(constant(n.inputs[1])).all() for n in model.graph if n.op_type == "Conv")


def clipped_pair(bias: float) -> Net:
    """A Clip [0, 6], then a depthwise layer of known bounds, a second Clip, and a reader."""
    net = Net()
    x = net.add("Clip", net.input("x", "N", 2, 4, 4), net.const(0.0), net.const(6.0))
    x = scaled(net, x, 2, 2, 1, name="bounded")
    x = net.add("Clip", x, net.const(0.0), net.const(6.0))
    # Largest inputs 0.1 * 6 * 2 + bias and 10 * 6 + bias.
    w = net.const(np.array([[0.1, 0.1], [10.0, 0.0]]).reshape(2, 2, 1, 1))
    x = net.add("Conv", x, w, net.const([bias, bias]), name="first")
    x = net.add("Clip", x, net.const(0.0), net.const(6.0))
    w = net.const(np.array([[0.001, 5.0]]).reshape(1, 2, 1, 1))
    return net.output(net.add("Conv", x, w, name="second", out="y"))


@pytest.mark.parametrize(("bias", "scales"), [(0.0, True), (4.0, True), (4.9, False)])
def test_a_clip_is_passed_only_by_channels_that_never_reach_it(bias, scales):
    net = clipped_pair(bias)
    x = {"x": np.random.default_rng(3).uniform(-2, 9, (64, 2, 4, 4)).astype(np.float32)}
    model, count = changed(net, "equalize", feeds=x)
    second = next(n for n in model.graph if n.name == "second")
    weight = constant(second.inputs[1]).reshape(-1)
    assert (weight[0] != np.float32(0.001)) == scales and weight[1] == 5.0
    assert (count > 0) == scales
    assert "never reach its upper limit" in model.meta["equalize"]
    if scales:  # 0.1 / s stays below what makes the limit active
        first = next(n for n in model.graph if n.name == "first")
        w, b = constant(first.inputs[1]), constant(first.inputs[2])
        assert 6 * w[0].sum() + b[0] <= 6 * (1 + 1e-6)


def normed() -> Net:
    net = Net()
    x = net.add("Relu", net.norm(scaled(net, net.input("x", "N", 3, 6, 6), 3, 8), 8))
    x = net.add("Relu", net.norm(scaled(net, x, 8, 8, 3, group=8), 8))
    return net.output(net.norm(scaled(net, x, 8, 4), 4, out="y"))


def raw(node: ir.Node) -> np.ndarray:
    """The layer's weight before its BatchNorm was folded into it."""
    norm = node.meta["folded_norm"]
    factor = norm.gamma / np.sqrt(norm.var + norm.epsilon)
    return constant(node.inputs[1]) / factor[:, None, None, None]


def test_folded_batchnorms_stay_right():
    model = normed().model()
    bind(model, feeds_for(model))
    rewritten(model, "fold_batchnorm")
    convs = [n for n in model.graph if n.op_type == "Conv"]
    before = [(raw(c), c.meta["folded_norm"]) for c in convs]
    moments = [c.outputs[0].meta["batchnorm"] for c in convs]
    equalize(model, lambda node: True)
    read = np.ones(3)
    for conv, (weight, norm), (beta, gamma) in zip(convs, before, moments, strict=True):
        new = conv.meta["folded_norm"]
        assert isinstance(new, FoldedNorm)
        # What the BatchNorm sees did not change, and it scales the channel by 1 / s.
        factors = read[:, None] if conv.attributes.get_int("group", 1) > 1 else read[None]
        np.testing.assert_allclose(raw(conv), weight * factors[:, :, None, None], rtol=1e-4)
        assert (new.mean is norm.mean) and (new.var is norm.var)
        read = norm.gamma / new.gamma
        np.testing.assert_allclose(norm.beta / new.beta, read, rtol=1e-9)
        shift = new.beta + (new.bias - new.mean) * new.gamma / np.sqrt(new.var + new.epsilon)
        np.testing.assert_allclose(constant(conv.inputs[2]), shift, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(conv.outputs[0].meta["batchnorm"][0], beta / read)
        np.testing.assert_allclose(conv.outputs[0].meta["batchnorm"][1], gamma / read)
    assert read.tolist() == [1.0] * 4  # the last layer writes the output


def test_training_with_live_batchnorm_is_that_of_the_network_before():
    """Batch statistics are those of the layers before the folding, which no scale changes."""
    outputs, feeds = [], None
    for names in ((), ("equalize",)):
        net = Net()
        x = net.add("Relu", net.norm(net.conv(net.input("x", "N", 3, 6, 6), 3, 8), 8))
        x = net.add("Relu", net.norm(net.conv(x, 8, 8, group=8), 8))
        model = net.output(net.norm(net.conv(x, 8, 4), 4, out="y")).model()
        feeds = feeds_for(model, rows=32)
        bind(model, feeds)
        rewritten(model, "fold_batchnorm", *names)
        network = QatNetwork(model, frozen_plan(model, Bits(8, 8)), LSQ(), "live")
        x = {"x": torch.from_numpy(feeds["x"])}
        outputs.append(network.train()(x)["y"].detach().numpy())
        with torch.no_grad():
            trained = network.eval()(x)["y"].numpy()
        learned = freeze(model, network.freeze())
        emitted = run(emit_qdq(model, learned, cpu()), feeds)["y"]
        np.testing.assert_allclose(emitted, trained, rtol=0, atol=1e-3 * np.abs(trained).max())
    assert sqnr(*outputs) > 20  # two roundings to 8 bits


def test_weights_scaled_per_tensor_lose_less():
    losses = []
    for names in ((), ("equalize",)):
        model = normed().model()
        feeds = feeds_for(model, rows=32)
        bind(model, feeds)
        rewritten(model, "fold_batchnorm", *names)
        plan = frozen_plan(model, Bits(8, 8, granularity="tensor"))
        losses.append(sqnr(run(model, feeds)["y"], run(emit_qdq(model, plan, cpu()), feeds)["y"]))
    assert losses[1] > losses[0] + 6


# rewrite_names


@pytest.mark.parametrize(
    ("requested", "names"),
    [
        (None, ("fold_pad", "space_to_depth_first_conv", "pad_first_conv_channels")),
        ([], ()),
        (["fold_pad"], ("fold_pad",)),
        (["equalize", "fold_pad"], ("equalize", "fold_pad")),
        (
            ["equalize"],
            ("fold_pad", "equalize", "space_to_depth_first_conv", "pad_first_conv_channels"),
        ),
    ],
)
def test_optional_rewrites_alone_are_added_to_the_targets_own(requested, names):
    own = ("fold_pad", "space_to_depth_first_conv", "pad_first_conv_channels")
    assert rewrite_names(requested, own) == names


def test_no_target_lists_an_optional_rewrite():
    assert "equalize" in REWRITES and "equalize" not in cpu().rewrites


@pytest.mark.parametrize(
    ("fixed1", "fixed2", "step"),
    [(0.0, 0.0, 3.0), (8.0, 2.0, 1.5), (0.0, 2.0, 2.0), (2.0, 0.0, 4.5), (9.0, 9.0, 3.0)],
)
def test_channels_beside_fixed_ones_are_balanced_relative_to_them(fixed1, fixed2, step):
    """r1 = 9 and r2 = 1; a fixed range of 0: the layer has no fixed channel."""
    ranges1, ranges2 = np.array([fixed1, 9.0]), np.array([fixed2, 1.0])
    assert balancing_step(ranges1[1:], ranges2[1:], ranges1, ranges2).tolist() == [step]
