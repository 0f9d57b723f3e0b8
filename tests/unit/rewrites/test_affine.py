"""Factors and offsets by constants are folded into the convolutions around them."""

import numpy as np
import pytest
from models import Net, changed, ops


def around(net: Net, x: str, s: object, t: object) -> str:
    """A learnable affine block: x * s + t."""
    return net.add("Add", net.add("Mul", net.const(s), x), net.const(t))


PER_CHANNEL = np.float32([[[0.5]], [[-2.0]], [[1.5]], [[0.1]]])


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        (np.float32([1.5]), np.float32([0.4])),
        (np.float32(-0.7), np.float32(0.0)),
        (PER_CHANNEL, PER_CHANNEL[::-1]),
        (PER_CHANNEL[None], np.float32([0.3])),
    ],
)
@pytest.mark.parametrize("op", ["Conv", "depthwise", "ConvTranspose"])
def test_an_affine_block_behind_a_convolution(scale, shift, op):
    net = Net()
    x = net.input("x", "N", 4, 6, 6)
    if op == "ConvTranspose":
        y = net.add("ConvTranspose", x, net.weight(4, 4, 3, 3))
    else:
        y = net.conv(x, 4, 4, group=4 if op == "depthwise" else 1)
    net.output(net.add("Relu", around(net, y, scale, shift), out="y"))
    model, count = changed(net, "fold_affine")
    assert count == 2 and len(ops(model)) == 2


@pytest.mark.parametrize(("op", "value"), [("Div", 3.0), ("Sub", 0.5)])
def test_division_and_difference(op, value):
    net = Net()
    y = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    net.output(net.add("Relu", net.add(op, y, net.const(np.float32(value))), out="y"))
    model, count = changed(net, "fold_affine")
    assert count == 1 and ops(model) == ["Conv", "Relu"]


def test_an_offset_that_varies_over_positions_stays():
    net = Net()
    y = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    net.output(net.add("Add", y, net.weight(1, 1, 6, 6), out="y"))
    assert changed(net, "fold_affine")[1] == 0


def test_a_convolution_with_another_reader_stays():
    net = Net()
    y = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    net.output(net.add("Add", net.add("Mul", y, net.const(np.float32(2))), y, out="y"))
    assert changed(net, "fold_affine")[1] == 0


@pytest.mark.parametrize("scale", [np.float32([1.7]), PER_CHANNEL])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_an_affine_block_in_front_of_a_convolution_without_pads(scale, group):
    net = Net()
    x = net.add("Sigmoid", net.input("x", "N", 4, 6, 6))
    y = net.conv(around(net, x, scale, np.float32([0.4])), 4, 8, pads=[0] * 4, group=group, out="y")
    model, count = changed(net.output(y), "fold_affine_into_next_conv")
    assert count == 2 and ops(model) == ["Sigmoid", "Conv"]


@pytest.mark.parametrize("scale", [np.float32([1.7]), PER_CHANNEL])
@pytest.mark.parametrize("group", [1, 4])
def test_in_front_of_pads_only_the_factor_is_folded(scale, group):
    net = Net()
    x = net.add("Sigmoid", net.input("x", "N", 4, 6, 6))
    y = net.conv(around(net, x, scale, np.float32([0.4])), 4, 8, group=group, out="y")
    model, count = changed(net.output(y), "fold_affine_into_next_conv")
    assert count == 1 and ops(model) == ["Sigmoid", "Add", "Conv"]


def test_a_factor_of_zero_in_front_of_pads_stays():
    net = Net()
    x = net.add("Sigmoid", net.input("x", "N", 4, 6, 6))
    y = net.conv(around(net, x, np.float32([0.0]), np.float32([0.4])), 4, 8, out="y")
    assert changed(net.output(y), "fold_affine_into_next_conv")[1] == 0


def test_products_with_one_and_sums_with_zero_are_removed():
    net = Net()
    x = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    for op, value in (("Mul", [1.0]), ("Add", [0.0]), ("Div", 1.0), ("Sub", 0.0)):
        x = net.add(op, x, net.const(np.float32(value)))
    model, count = changed(net.output(net.add("Relu", x, out="y")), "remove_neutral_operands")
    assert count == 4 and ops(model) == ["Conv", "Relu"]


def test_a_constant_that_widens_the_value_stays():
    net = Net()
    x = net.add("Relu", net.input("x", "N", 4))
    y = net.add("Mul", x, net.const(np.ones((3, 1, 4), np.float32)))
    assert changed(net.output(net.add("Relu", y, out="y")), "remove_neutral_operands")[1] == 0


def test_a_folded_batchnorm_is_restored_with_the_affine_block():
    """Training unfolds the record: gamma (W x + b - mean) / sigma + beta is what the layer does."""
    net = Net()
    y = net.norm(net.conv(net.input("x", "N", 4, 6, 6), 4, 4, pads=[0] * 4), 4)
    net.output(net.add("Relu", around(net, y, PER_CHANNEL, np.float32([0.3])), out="y"))
    model, _ = changed(net, "fold_batchnorm", "fold_affine")
    layer = next(n for n in model.graph if n.op_type == "Conv")
    norm = layer.meta["folded_norm"]
    factor = norm.gamma / np.sqrt(norm.var + norm.epsilon)
    restored = norm.beta + (norm.bias - norm.mean) * factor
    np.testing.assert_allclose(restored, layer.inputs[2].const_value.numpy(), rtol=0, atol=1e-6)


def test_a_folded_batchnorm_is_restored_with_an_offset_in_front():
    net = Net()
    x = net.add("Sigmoid", net.input("x", "N", 4, 6, 6))
    shifted = net.add("Add", x, net.const(np.float32([0.4])))
    y = net.norm(net.conv(shifted, 4, 4, pads=[0] * 4), 4)
    net.output(net.add("Relu", y, out="y"))
    model, _ = changed(net, "fold_batchnorm", "fold_affine_into_next_conv")
    layer = next(n for n in model.graph if n.op_type == "Conv")
    norm = layer.meta["folded_norm"]
    factor = norm.gamma / np.sqrt(norm.var + norm.epsilon)
    restored = norm.beta + (norm.bias - norm.mean) * factor
    np.testing.assert_allclose(restored, layer.inputs[2].const_value.numpy(), rtol=0, atol=1e-5)
