"""Decomposed activations and normalizations become the operators of their opset."""

import numpy as np
import pytest
from models import Net, changed, ops

from qtool.graph.queries import attribute


def net_of(opset: int = 21) -> tuple[Net, str]:
    net = Net(opset=opset, ir_version=10)
    return net, net.conv(net.input("x", "N", 3, 6, 6), 3, 4, pads=[0] * 4)


def relu6(net: Net, x: str) -> str:
    shifted = net.add("Add", x, net.const(np.float32([3])))
    return net.add("Clip", shifted, net.const(np.float32(0)), net.const(np.float32(6)))


def divide(net: Net, x: str, form: str) -> str:
    if form == "Div":
        return net.add("Div", x, net.const(np.float32(6)))
    return net.add("Mul", net.const(np.float32(1 / 6)), x)


@pytest.mark.parametrize("form", ["Div", "Mul"])
@pytest.mark.parametrize("place", ["behind", "in front"])
def test_hard_swish_from_its_operators(form, place):
    net, x = net_of()
    if place == "behind":
        y = divide(net, net.add("Mul", x, relu6(net, x)), form)
    else:
        y = net.add("Mul", divide(net, relu6(net, x), form), x)
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_hard_swish")
    assert ops(model) == ["Conv", "HardSwish", "Relu"]
    assert count == (1 if place == "behind" else 2)  # HardSigmoid first, then the product


def test_hard_sigmoid_of_a_squeeze_and_excite_gate():
    net, x = net_of()
    gate = divide(net, relu6(net, net.add("GlobalAveragePool", x)), "Div")
    model, _ = changed(net.output(net.add("Mul", x, gate, out="y")), "compose_hard_swish")
    assert ops(model) == ["Conv", "GlobalAveragePool", "HardSigmoid", "Mul"]
    node = next(n for n in model.graph if n.op_type == "HardSigmoid")
    assert attribute(node, "alpha") == pytest.approx(1 / 6)


def test_without_the_operator_hard_swish_becomes_a_hard_sigmoid_and_a_product():
    net, x = net_of(opset=13)
    y = net.add("Mul", divide(net, relu6(net, x), "Div"), x)
    model, _ = changed(net.output(net.add("Relu", y, out="y")), "compose_hard_swish")
    assert ops(model) == ["Conv", "HardSigmoid", "Mul", "Relu"]


@pytest.mark.parametrize(("shift", "high"), [(2.0, 6.0), (3.0, 5.0)])
def test_other_numbers_are_another_function(shift, high):
    net, x = net_of()
    shifted = net.add("Add", x, net.const(np.float32(shift)))
    gate = net.add("Clip", shifted, net.const(np.float32(0)), net.const(np.float32(high)))
    net.output(net.add("Mul", x, divide(net, gate, "Div"), out="y"))
    assert changed(net, "compose_hard_swish")[1] == 0


def test_a_gate_with_another_reader_is_left():
    net, x = net_of()
    gate = relu6(net, x)
    divide_out = divide(net, net.add("Mul", x, gate), "Div")
    net.output(net.add("Add", divide_out, gate, out="y"))
    assert changed(net, "compose_hard_swish")[1] == 0


@pytest.mark.parametrize("order", ["half last", "half on x", "half on erf"])
def test_gelu_from_erf(order):
    net, x = net_of()
    scaled = net.add("Div", x, net.const(np.float32(2**0.5)))
    gate = net.add("Add", net.add("Erf", scaled), net.const(np.float32(1)))
    half = net.const(np.float32(0.5))
    if order == "half last":
        y = net.add("Mul", net.add("Mul", x, gate), half)
    elif order == "half on x":
        y = net.add("Mul", net.add("Mul", half, x), gate)
    else:
        y = net.add("Mul", x, net.add("Mul", half, gate))
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_gelu")
    assert count == 1 and ops(model) == ["Conv", "Gelu", "Relu"]


def test_gelu_needs_its_opset():
    net, x = net_of(opset=17)
    scaled = net.add("Div", x, net.const(np.float32(2**0.5)))
    gate = net.add("Add", net.add("Erf", scaled), net.const(np.float32(1)))
    net.output(net.add("Mul", net.add("Mul", x, gate), net.const(np.float32(0.5)), out="y"))
    assert changed(net, "compose_gelu")[1] == 0


def over_root(net: Net, x: str, total: str, inverse: str | None) -> str:
    """x / sqrt(total), with or without an inverse of the root."""
    if inverse == "Pow":
        return net.add("Mul", x, net.add("Pow", total, net.const(np.float32(-0.5))))
    root = net.add("Sqrt", total)
    if inverse is None:
        return net.add("Div", x, root)
    if inverse == "Reciprocal":
        return net.add("Mul", net.add("Reciprocal", root), x)
    return net.add("Mul", x, net.add("Div", net.const(np.float32(1)), root))


@pytest.mark.parametrize(
    ("square", "inverse", "beta"),
    [
        ("Pow", None, True),
        ("Mul", None, False),
        ("Mul", "Reciprocal", True),
        ("Pow", "one over", True),
        ("Mul", "Pow", False),
    ],
)
def test_layer_norm_from_its_reductions(square, inverse, beta):
    net = Net(opset=17)
    x = net.add("MatMul", net.input("x", "N", 5, 8), net.weight(8, 12))
    centered = net.add("Sub", x, net.add("ReduceMean", x, axes=[-1]))
    two = net.const(np.float32(2))
    squared = net.add(square, centered, two if square == "Pow" else centered)
    variance = net.add("ReduceMean", squared, axes=[2])
    total = net.add("Add", variance, net.const(np.float32(1e-5)))
    y = net.add("Mul", over_root(net, centered, total, inverse), net.weight(12))
    y = net.add("Add", y, net.weight(12)) if beta else y
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_layer_norm")
    assert count == 1 and ops(model) == ["MatMul", "LayerNormalization", "Relu"]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("inverse", ["Reciprocal", "Div"])
def test_layer_norm_as_tensorflow_writes_it(inverse, scale):
    net = Net(opset=17)
    x = net.add("MatMul", net.input("x", "N", 5, 8), net.weight(8, 12))
    mean = net.add("ReduceMean", x, axes=[-1])
    centered = net.add("Sub", x, mean)
    variance = net.add("ReduceMean", net.add("Mul", centered, centered), axes=[-1])
    root = net.add("Sqrt", net.add("Add", variance, net.const(np.float32(1e-5))))
    gamma = net.weight(12) if scale else net.const(np.ones(12, np.float32))
    if inverse == "Div":
        factor = net.add("Div", gamma, root)
    else:
        factor = net.add("Reciprocal", root)
        factor = net.add("Mul", factor, gamma) if scale else factor
    shift = net.add("Sub", net.weight(12), net.add("Mul", mean, factor))
    y = net.add("Add", net.add("Mul", x, factor), shift)
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_layer_norm")
    assert count == 1 and ops(model) == ["MatMul", "LayerNormalization", "Relu"]


@pytest.mark.parametrize("beta", [True, False])
def test_layer_norm_without_a_scale(beta):
    net = Net(opset=17)
    x = net.add("MatMul", net.input("x", "N", 5, 8), net.weight(8, 12))
    centered = net.add("Sub", x, net.add("ReduceMean", x, axes=[-1]))
    variance = net.add("ReduceMean", net.add("Mul", centered, centered), axes=[-1])
    deviation = net.add("Sqrt", net.add("Add", variance, net.const(np.float32(1e-5))))
    y = net.add("Div", centered, deviation)
    y = net.add("Add", y, net.weight(12)) if beta else y
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_layer_norm")
    assert count == 1 and ops(model) == ["MatMul", "LayerNormalization", "Relu"]


@pytest.mark.parametrize("wrong", ["mean", "factor", "x"])
def test_another_sum_of_products_is_no_layer_norm(wrong):
    """One value of TensorFlow's form exchanged for another of the same shape."""
    net = Net(opset=17)
    x = net.add("MatMul", net.input("x", "N", 5, 8), net.weight(8, 12))
    mean = net.add("ReduceMean", x, axes=[-1])
    centered = net.add("Sub", x, mean)
    variance = net.add("ReduceMean", net.add("Mul", centered, centered), axes=[-1])
    inverse = net.add(
        "Reciprocal", net.add("Sqrt", net.add("Add", variance, net.const(np.float32(1e-5))))
    )
    factor, other = (net.add("Mul", inverse, net.weight(12)) for _ in range(2))
    product = net.add(
        "Mul", mean if wrong != "mean" else variance, factor if wrong != "factor" else other
    )
    scaled = net.add("Mul", x if wrong != "x" else centered, factor)
    y = net.add("Add", scaled, net.add("Sub", net.weight(12), product))
    assert changed(net.output(net.add("Relu", y, out="y")), "compose_layer_norm")[1] == 0


def test_a_mean_over_another_axis_is_no_layer_norm():
    net = Net(opset=17)
    x = net.add("MatMul", net.input("x", "N", 8, 8), net.weight(8, 8))
    centered = net.add("Sub", x, net.add("ReduceMean", x, axes=[1]))
    variance = net.add("ReduceMean", net.add("Mul", centered, centered), axes=[1])
    deviation = net.add("Sqrt", net.add("Add", variance, net.const(np.float32(1e-5))))
    y = net.add("Mul", net.add("Div", centered, deviation), net.weight(8))
    assert changed(net.output(net.add("Relu", y, out="y")), "compose_layer_norm")[1] == 0


def limited(net: Net, x: str, form: str) -> str:
    zero, six = net.const(np.float32([0])), net.const(np.float32(6))
    if form == "Relu and Min":
        return net.add("Min", net.add("Relu", x), six)
    if form == "Max and Min":
        return net.add("Min", six, net.add("Max", x, zero))
    return net.add("Max", net.add("Clip", x, "", six), zero)


@pytest.mark.parametrize("form", ["Relu and Min", "Max and Min", "Clip and Max"])
def test_limits_of_hard_swish_written_as_other_ops(form):
    net, x = net_of()
    gate = limited(net, net.add("Add", x, net.const(np.float32(3))), form)
    y = divide(net, net.add("Mul", x, gate), "Div")
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_hard_swish")
    assert count == 1 and ops(model) == ["Conv", "HardSwish", "Relu"]


@pytest.mark.parametrize("form", ["Relu", "Min"])
def test_one_limit_is_no_hard_swish(form):
    net, x = net_of()
    shifted = net.add("Add", x, net.const(np.float32(3)))
    gate = net.add(form, shifted, *([net.const(np.float32(6))] if form == "Min" else []))
    net.output(divide(net, net.add("Mul", x, gate), "Div"))
    assert changed(net, "compose_hard_swish")[1] == 0


@pytest.mark.parametrize("factor", [0.044715, 0.05])
@pytest.mark.parametrize("square", ["factor first", "square first"])
def test_gelu_from_tanh_of_a_product(square, factor):
    """x (1 + 0.044715 x^2), as transformers' gelu_fast."""
    net, x = net_of()
    number = net.const(np.float32(factor))
    if square == "factor first":
        squared = net.add("Mul", net.add("Mul", x, number), x)
    else:
        squared = net.add("Mul", number, net.add("Mul", x, x))
    scaled = net.add("Mul", x, net.const(np.float32((2 / np.pi) ** 0.5)))
    inner = net.add("Mul", scaled, net.add("Add", squared, net.const(np.float32(1))))
    gate = net.add("Add", net.add("Tanh", inner), net.const(np.float32(1)))
    y = net.add("Mul", net.add("Mul", x, net.const(np.float32(0.5))), gate)
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_gelu")
    assert count == (factor == 0.044715)
    assert not count or ops(model) == ["Conv", "Gelu", "Relu"]


@pytest.mark.parametrize("cube", ["Pow", "Mul"])
@pytest.mark.parametrize("factor", [0.044715, 0.05])
def test_gelu_from_tanh(cube, factor):
    net, x = net_of()
    cubic = net.add("Pow", x, net.const(np.float32(3))) if cube == "Pow" else None
    cubic = cubic or net.add("Mul", x, net.add("Mul", x, x))
    total = net.add("Add", x, net.add("Mul", cubic, net.const(np.float32(factor))))
    inner = net.add("Mul", total, net.const(np.float32((2 / np.pi) ** 0.5)))
    gate = net.add("Add", net.add("Tanh", inner), net.const(np.float32(1)))
    y = net.add("Mul", net.add("Mul", x, net.const(np.float32(0.5))), gate)
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_gelu")
    assert count == (factor == 0.044715)
    if count:
        assert ops(model) == ["Conv", "Gelu", "Relu"]
        assert attribute(next(n for n in model.graph if n.op_type == "Gelu"), "approximate")


@pytest.mark.parametrize("negation", ["Neg", "Mul"])
@pytest.mark.parametrize("form", ["Reciprocal", "one over", "SiLU"])
def test_sigmoid_from_the_exponential(negation, form):
    net, x = net_of()
    minus = [net.const(np.float32(-1))] if negation == "Mul" else []
    total = net.add("Add", net.add("Exp", net.add(negation, x, *minus)), net.const(np.float32(1)))
    if form == "Reciprocal":
        y = net.add("Reciprocal", total)
    else:
        y = net.add("Div", x if form == "SiLU" else net.const(np.float32(1)), total)
    model, count = changed(net.output(net.add("Relu", y, out="y")), "compose_sigmoid")
    product = ["Mul"] if form == "SiLU" else []
    assert count == 1 and ops(model) == ["Conv", "Sigmoid", *product, "Relu"]


def test_a_numerator_that_widens_the_result_stays():
    net, x = net_of()
    total = net.add("Add", net.add("Exp", net.add("Neg", x)), net.const(np.float32(1)))
    one = net.const(np.ones((1, 1, 1, 1, 1), np.float32))
    y = net.add("Relu", net.add("Div", one, total), out="y")
    model, count = changed(net.output(y), "compose_sigmoid")
    assert count == 1 and ops(model) == ["Conv", "Sigmoid", "Mul", "Relu"]


def test_another_denominator_is_no_sigmoid():
    net, x = net_of()
    total = net.add("Add", net.add("Exp", net.add("Neg", x)), net.const(np.float32(2)))
    net.output(net.add("Div", x, total, out="y"))
    assert changed(net, "compose_sigmoid")[1] == 0


def rms_norm(opset: int, form: str | None = "Reciprocal", axis: int = -1) -> Net:
    net = Net(opset=opset, ir_version=10)
    x = net.add("MatMul", net.input("x", "N", 12, 8), net.weight(8, 12))
    square = net.add("Pow", x, net.const(np.float32(2)))
    mean = net.add("ReduceMean", square, net.const(np.array([axis])))
    y = over_root(net, x, net.add("Add", mean, net.const(np.float32(1e-6))), form)
    return net.output(net.add("Relu", net.add("Mul", net.weight(12), y), out="y"))


@pytest.mark.parametrize("form", [None, "Reciprocal", "one over", "Pow"])
def test_rms_norm_from_its_reduction(form):
    model, count = changed(rms_norm(23, form), "compose_rms_norm")
    assert count == 1 and ops(model) == ["MatMul", "RMSNormalization", "Relu"]


@pytest.mark.parametrize(("opset", "axis"), [(21, -1), (23, 1)])
def test_rms_norm_needs_its_opset_and_the_last_axis(opset, axis):
    assert changed(rms_norm(opset, axis=axis), "compose_rms_norm")[1] == 0


def line(net: Net, x: str, slope: float, form: str) -> str:
    """min(max(slope x + 0.5, 0), 1)"""
    scaled = net.add(form, x, net.const(np.float32(slope if form == "Mul" else 1 / slope)))
    shifted = net.add("Add", net.const(np.float32(0.5)), scaled)
    return net.add("Min", net.add("Relu", shifted), net.const(np.float32(1)))


@pytest.mark.parametrize("form", ["Mul", "Div"])
@pytest.mark.parametrize("slope", [0.2, 1 / 6])
def test_a_clipped_line_is_a_hard_sigmoid(slope, form):
    net, x = net_of()
    y = net.add("Mul", x, line(net, x, slope, form))
    model, _ = changed(net.output(net.add("Relu", y, out="y")), "compose_hard_swish")
    if slope == 1 / 6:
        assert ops(model) == ["Conv", "HardSwish", "Relu"]
        return
    assert ops(model) == ["Conv", "HardSigmoid", "Mul", "Relu"]
    node = next(n for n in model.graph if n.op_type == "HardSigmoid")
    assert attribute(node, "alpha") == pytest.approx(slope)


def test_a_clipped_line_behind_a_convolution_alone_is_its_own():
    """The convolution takes in the factor and the offset, and its grid the limits."""
    net, x = net_of()
    assert changed(net.output(line(net, x, 0.2, "Mul")), "compose_hard_swish")[1] == 0
