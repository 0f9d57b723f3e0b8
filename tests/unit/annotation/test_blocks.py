"""Blocks of several operators are named in the report."""

import numpy as np
import pytest
from models import Net, squeeze_excite

from qtool.annotation.blocks import block_notes


def notes(net: Net, integer: frozenset[str] = frozenset()) -> list[str]:
    return block_notes(list(net.model().graph), integer)


def silu() -> Net:
    net = Net()
    x = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    return net.output(net.add("Mul", net.add("Sigmoid", x, name="s"), x, name="m", out="y"))


def group_norm() -> Net:
    net = Net()
    x = net.add("Reshape", net.input("x", "N", 4, 6, 6), net.const(np.array([0, 2, -1])))
    scale, shift = net.const(np.ones(2)), net.const(np.zeros(2))
    x = net.add("InstanceNormalization", x, scale, shift)
    return net.output(net.add("Reshape", x, net.const(np.array([-1, 4, 6, 6])), out="y"))


def rms_norm(inverse: str = "") -> Net:
    net = Net()
    x = net.input("x", "N", 6, 8)
    mean = net.add("ReduceMean", net.add("Pow", x, net.const(np.float32(2))), axes=[-1])
    root = net.add("Sqrt", net.add("Add", mean, net.const(np.float32(1e-6))))
    if inverse:
        ones = [net.const(np.float32(1))] if inverse == "Div" else []
        return net.output(net.add("Mul", x, net.add(inverse, *ones, root), out="y"))
    return net.output(net.add("Div", x, root, out="y"))


def separable() -> Net:
    net = Net()
    x = net.conv(net.input("x", "N", 4, 6, 6), 4, 4, group=4)
    return net.output(net.conv(net.add("Relu", x), 4, 6, k=1, out="y"))


@pytest.mark.parametrize(
    ("build", "name", "ops"),
    [(silu, "SiLU", 2), (squeeze_excite, "squeeze-excite", 6), (group_norm, "GroupNorm", 3),
     (rms_norm, "RMSNorm", 5), (lambda: rms_norm("Reciprocal"), "RMSNorm", 6),
     (lambda: rms_norm("Div"), "RMSNorm", 6), (separable, "depthwise-separable convolution", 3)],
)  # fmt: skip
def test_each_block_is_named_with_its_size(build, name, ops):
    assert notes(build()) == [f"blocks: 1 {name} (0 of {ops} ops on codes)"]


def test_the_ops_on_codes_are_counted():
    assert notes(silu(), frozenset({"s"})) == ["blocks: 1 SiLU (1 of 2 ops on codes)"]


def test_a_graph_without_blocks_has_no_line():
    net = Net()
    x = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    assert notes(net.output(net.add("Mul", x, net.add("Sigmoid", "x"), out="y"))) == []
