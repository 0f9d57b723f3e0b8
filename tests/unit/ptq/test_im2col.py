"""A layer as a matrix product over rows computes what the layer computes."""

import numpy as np
import pytest
import torch
from models import Net

from qtool.graph.queries import constant
from qtool.ptq.second_order.im2col import matrix_layer
from qtool.runtime.executor import Executor

CONVS = {
    "plain": {"shape": (6, 4, 3, 3)},
    "pointwise, strides": {"shape": (6, 4, 1, 1), "strides": [2, 3]},
    "pads": {"shape": (6, 4, 3, 2), "pads": [1, 0, 2, 1]},
    "dilations": {"shape": (6, 4, 3, 3), "dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "grouped": {"shape": (6, 2, 3, 3), "group": 2, "strides": [2, 1]},
    "depthwise": {"shape": (8, 1, 3, 3), "group": 4, "pads": [1] * 4},
    "same upper": {"shape": (6, 4, 3, 3), "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same lower": {"shape": (6, 4, 2, 4), "auto_pad": "SAME_LOWER", "strides": [2, 1]},
    "valid": {"shape": (6, 4, 3, 3), "auto_pad": "VALID"},
    "one axis": {"shape": (6, 4, 3), "pads": [2, 0], "dilations": [2]},
    "three axes": {"shape": (6, 2, 2, 1, 3), "group": 2, "pads": [0, 0, 1, 1, 0, 1]},
}
LINEAR = {
    "Gemm": ("Gemm", (5, 7), (7, 3), {}),
    "Gemm transB": ("Gemm", (5, 7), (3, 7), {"transB": 1}),
    "Gemm transA": ("Gemm", (7, 5), (7, 3), {"transA": 1}),
    "MatMul": ("MatMul", (5, 7), (7, 3), {}),
    "MatMul of sequences": ("MatMul", (2, 5, 7), (7, 3), {}),
}


def product(net: Net, y: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The layer's output and its matrix products, channels last: [rows, channels]."""
    model = net.output(y).model()
    node = next(iter(model.graph))
    weight = constant(node.inputs[1])
    layer = matrix_layer(node, weight)
    tensor = torch.from_numpy(x)
    every = torch.arange(int(np.prod(layer.positions(tensor))))
    rows = layer.rows(tensor, every).numpy()
    matrices = layer.matrices(weight)
    assert np.array_equal(layer.from_matrices(matrices), weight)
    products = (rows @ matrices.swapaxes(1, 2)).transpose(1, 0, 2).reshape(len(every), -1)
    with torch.no_grad():
        y = Executor(model)({"x": tensor}, None, [y])[y].numpy()
    channel = 1 if node.op_type == "Conv" else -1
    return np.moveaxis(y, channel, -1).reshape(len(every), -1), products


@pytest.mark.parametrize("attributes", CONVS.values(), ids=CONVS)
def test_a_convolution_is_a_product_over_patches(attributes):
    attributes = dict(attributes)
    net, shape = Net(), attributes.pop("shape")
    size = (7, 6, 5)[: len(shape) - 2]
    x = net.input("x", "N", 4, *size)
    y = net.add("Conv", x, net.weight(*shape), **attributes)
    data = np.random.default_rng(1).normal(0, 1, (2, 4, *size)).astype(np.float32)
    want, got = product(net, y, data)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("op", "x", "w", "attributes"), LINEAR.values(), ids=LINEAR)
def test_a_linear_layer_is_a_product_over_rows(op, x, w, attributes):
    net = Net()
    y = net.add(op, net.input("x", *x), net.weight(*w), **attributes)
    data = np.random.default_rng(1).normal(0, 1, x).astype(np.float32)
    want, got = product(net, y, data)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_other_layers_are_no_matrix_product():
    net = Net()
    x = net.input("x", "N", 4, 7, 7)
    net.output(net.add("ConvTranspose", x, net.weight(4, 4, 3, 3)))
    node = next(iter(net.model().graph))
    assert matrix_layer(node, np.ones((4, 4, 3, 3))) is None
