"""Rewrites keep the float function, say how often they applied, and decline where inexact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import BUILDERS, Net, changed, cpu, legacy_pad, ops, rewritten, run

from qtool.graph.queries import attribute, dims


@pytest.mark.parametrize("name", BUILDERS)
def test_all_rewrites_together_keep_the_function(name):
    changed(BUILDERS[name](), *cpu().rewrites)


def test_pads_computed_by_a_chain_become_conv_pads():
    net = BUILDERS["inverted_bottleneck"]()
    model, count = changed(net, "fold_constants", "fold_batchnorm", "fold_pad")
    assert count == 2
    assert set(ops(model)) == {"Conv", "Clip", "Add"}
    pads = [attribute(n, "pads") for n in model.graph if n.op_type == "Conv"]
    assert pads[:3] == [(0, 0, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1)]


# fold_batchnorm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_batchnorm_folds_backwards(op, bias):
    net = Net()
    x = net.input("x", "N", 6) if op == "Gemm" else net.input("x", "N", 6, 5, 5)
    w = net.weight(*((6, 4) if op == "Gemm" else (4, 6, 3, 3) if op == "Conv" else (6, 4, 3, 3)))
    x = net.add(op, x, w, *([net.weight(4)] if bias else []))
    model, count = changed(net.output(net.norm(x, 4, out="y")), "fold_batchnorm")
    assert (ops(model), count) == ([op], 1)
    assert "batchnorm" in model.graph.outputs[0].meta


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (), (2, 4), (4, 1)])
def test_batchnorm_and_every_gemm_bias(shape):
    net = Net()
    bias = net.const(net.rng.normal(size=shape))
    rows = shape[0] if len(shape) == 2 and shape[0] > 1 else 2
    y = net.add("Gemm", net.input("x", rows, 6), net.weight(6, 4), bias)
    _, count = changed(net.output(net.norm(y, 4, out="y")), "fold_batchnorm")
    assert count == (shape not in [(2, 4), (4, 1)])


def grouped_transpose(net, x):
    return net.add("ConvTranspose", x, net.weight(4, 2, 3, 3), group=2, pads=[1] * 4)


def two_readers(net, x):
    x = net.conv(x, 4, 4)
    net.output(net.add("Relu", x))
    return x


def is_output(net, x):
    x = net.conv(x, 4, 4, out="conv")
    net.output("conv")
    return x


def scaled_gemm(net, x):
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.add("Gemm", x, net.weight(4, 4), net.weight(4), alpha=0.5)


def padded(net, x, *, value=0.0, pads=(0, 0, 1, 1, 0, 0, 1, 1), **attributes):
    x = net.conv(x, 4, 4, k=1)
    return net.add("Pad", x, net.const(np.array(pads)), net.const(value), **attributes)


@pytest.mark.parametrize("before", [grouped_transpose, two_readers, is_output, scaled_gemm, padded])
def test_batchnorm_stays_behind(before):
    net = Net()
    y = net.norm(before(net, net.input("x", "N", 4, 5, 5)), 4, out="y")
    model, count = changed(net.output(y), "fold_batchnorm")
    assert count == 0 and "BatchNormalization" in ops(model)


@pytest.mark.parametrize(
    ("options", "folds"),
    [
        ({}, True),
        ({"value": 1.0}, False),
        ({"mode": "reflect"}, False),
        # A Pad that shifts channels, of which one comes in as another leaves.
        ({"pads": (0, 1, 0, 0, 0, -1, 0, 0)}, False),
    ],
)
def test_batchnorm_without_shift_passes_a_pad_of_zeros(options, folds):
    net = Net()
    x = padded(net, net.input("x", "N", 4, 5, 5), **options)
    model, count = changed(net.output(net.norm(x, 4, shift=False, out="y")), "fold_batchnorm")
    assert count == folds and ("BatchNormalization" in ops(model)) != folds


def test_a_tied_weight_is_folded_for_one_reader_only():
    net = Net()
    w, x = net.weight(4, 4, 3, 3, name="w"), net.input("x", "N", 4, 5, 5)
    plain = net.add("Conv", x, w, pads=[1] * 4)
    folded = net.norm(net.add("Conv", x, w, pads=[1] * 4), 4)
    net.output(net.add("Add", plain, folded, out="y"))
    model, count = changed(net, "fold_batchnorm")
    assert count == 1 and ops(model) == ["Conv", "Conv", "Add"]
    assert [n.inputs[1].name for n in model.graph if n.op_type == "Conv"] == ["w", "w_1"]


# fold_batchnorm_into_next_conv


@pytest.mark.parametrize(
    ("attributes", "shift", "folds"),
    [
        ({"pads": [0] * 4}, True, True),
        ({"pads": [0] * 4, "group": 2}, True, True),
        ({"pads": [1] * 4}, False, True),
        ({"pads": [1] * 4}, True, False),
        ({"pads": [0, 0, 0, 1]}, True, False),
        ({"pads": [0] * 4, "auto_pad": "VALID"}, True, True),
        ({"pads": [0] * 4, "auto_pad": "SAME_UPPER"}, True, False),
    ],
)
def test_batchnorm_folds_forwards_where_nothing_is_padded(attributes, shift, folds):
    net = Net()
    x = net.norm(net.input("x", "N", 4, 6, 6), 4, shift)
    if "auto_pad" in attributes:
        attributes = {**attributes, "pads": None}
    net.output(net.conv(x, 4, 6, out="y", **attributes))
    for node in net.nodes:
        selected = [a for a in node.attribute if a.name != "pads" or a.ints]
        del node.attribute[:]
        node.attribute.extend(selected)
    model, count = changed(net, "fold_batchnorm_into_next_conv")
    assert count == folds and len(model.graph) == 2 - folds


# fold_pad


def test_asymmetric_pads_add_up():
    net = Net()
    x = legacy_pad(net, net.input("x", "N", 3, 7, 7), (0, 1, 2, 0))
    net.output(net.conv(x, 3, 4, pads=[1, 0, 0, 1], strides=[2, 2], out="y"))
    model, count = changed(net, "fold_constants", "fold_pad")
    assert count == 1 and attribute(next(iter(model.graph)), "pads") == (1, 1, 2, 1)


def test_a_pad_with_several_conv_readers_goes_into_all():
    net = Net()
    pads = net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    x = net.add("Pad", net.input("x", "N", 3, 7, 7), pads)
    a, b = (net.conv(x, 3, 4, pads=[0] * 4) for _ in range(2))
    model, count = changed(net.output(net.add("Add", a, b, out="y")), "fold_pad")
    assert count == 1 and ops(model) == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize(
    ("pads", "fill", "attributes", "reader"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.5, {}, "Conv"),
        ([0, 1, 1, 1, 0, 0, 1, 1], 0.0, {}, "Conv"),
        ([0, 0, 1, 1, 0, 0, 1, -1], 0.0, {}, "Conv"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, {"mode": "edge"}, "Conv"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, {}, "Conv and Relu"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, {}, "Conv and output"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, {}, "MaxPool"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, {}, "SAME Conv"),
    ],
)
def test_a_pad_stays(pads, fill, attributes, reader):
    net = Net()
    c = 4 if pads[1] else 3
    p = net.add("Pad", net.input("x", "N", 3, 7, 7), net.const(np.array(pads)), net.const(fill))
    net.nodes[-1].attribute.extend(_attributes(attributes))
    if reader == "MaxPool":
        net.output(net.add("MaxPool", p, kernel_shape=[3, 3], out="y"))
    elif reader == "SAME Conv":
        net.output(net.add("Conv", p, net.weight(4, 3, 3, 3), auto_pad="SAME_LOWER", out="y"))
    else:
        net.output(net.conv(p, c, 4, pads=[0] * 4, out="y"))
    if reader == "Conv and Relu":
        net.output(net.add("Relu", p, out="z"))
    if reader == "Conv and output":
        net.output(p)
    model, count = changed(net, "fold_pad")
    assert count == 0 and "Pad" in ops(model)


def _attributes(values):
    from onnx import helper

    return [helper.make_attribute(k, v) for k, v in values.items()]


# The first convolution


@given(
    kernel=st.tuples(st.integers(5, 11), st.integers(1, 11)),
    turned=st.booleans(),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    size=st.tuples(st.integers(11, 18), st.integers(11, 18)),
    channels=st.integers(1, 4),
)
def test_space_to_depth_is_exact(kernel, turned, pads, size, channels):
    net = Net()
    kernel = kernel[::-1] if turned else kernel
    x = net.input("x", 2, channels, *size)
    # Small integers: every sum is exact in float32, so the outputs must agree to the bit.
    weight = net.const(np.float32(net.rng.integers(-4, 5, (3, channels, *kernel))))
    net.output(net.add("Conv", x, weight, strides=[2, 2], pads=list(pads), out="y"))
    feeds = {"x": np.float32(net.rng.integers(-8, 9, (2, channels, *size)))}
    want = run(net.proto(), feeds)["y"]
    model, count = changed(net, "space_to_depth_first_conv", feeds=feeds)
    assert count == 1 and "SpaceToDepth" in ops(model)
    np.testing.assert_array_equal(run(model, feeds)["y"], want)


@pytest.mark.parametrize(
    ("k", "attributes"),
    [
        (5, {"dilations": [2, 2]}),
        (5, {"strides": [1, 1]}),
        (5, {"strides": [2, 1]}),
        (3, {}),
        (5, {"group": 3}),
        (5, {"auto_pad": "SAME_UPPER", "pads": None}),
    ],
)
def test_space_to_depth_declines(k, attributes):
    net = Net()
    attributes = {"strides": [2, 2], "pads": [2] * 4, **attributes}
    attributes = {key: v for key, v in attributes.items() if v is not None}
    group = attributes.get("group", 1)
    w = net.weight(6, 3 // group, k, k)
    net.output(net.add("Conv", net.input("x", "N", 3, 12, 12), w, out="y", **attributes))
    assert changed(net, "space_to_depth_first_conv")[1] == 0


def test_space_to_depth_needs_a_static_size_and_few_channels():
    for channels, size in ((3, ("H", "W")), (5, (12, 12))):
        net = Net()
        x = net.input("x", "N", channels, *size)
        net.output(net.conv(x, channels, 4, k=5, strides=[2, 2], out="y"))
        assert rewritten(net.model(), "space_to_depth_first_conv") == {
            "space_to_depth_first_conv": 0
        }


@pytest.mark.parametrize(("channels", "group", "applies"), [(3, 1, True), (1, 1, False), (3, 3, 0)])
def test_three_channels_become_four(channels, group, applies):
    net = Net()
    x = net.input("x", "N", channels, "H", "W")
    net.output(net.conv(x, channels, 6, group=group, dilations=[2, 2], out="y"))
    model, count = changed(net, "pad_first_conv_channels")
    assert count == applies
    assert dims(next(n for n in model.graph if n.op_type == "Conv").inputs[1])[1] == (
        4 if applies else channels // group
    )


def test_layers_that_stay_float_keep_their_form():
    net = Net()
    net.output(net.conv(net.input("x", "N", 3, 12, 12), 3, 4, k=5, strides=[2, 2], out="y"))
    for name in ("space_to_depth_first_conv", "pad_first_conv_channels"):
        assert changed(net, name, floats=frozenset({"Conv0"}))[1] == 0
