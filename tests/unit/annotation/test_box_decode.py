"""Layers of fixed numbers that decode boxes stay float; learned ones do not."""

from dataclasses import replace

import numpy as np
import pytest
from models import Net, bind, cpu, feeds_for, optimized, quantized, rewritten, run, sqnr

from qtool.annotation.annotator import annotate
from qtool.annotation.float_patterns import FLOAT_PATTERNS, pattern_reasons
from qtool.quant.bit_widths import Bits
from qtool.targets.target import FLOAT_PATTERNS as NAMES

CORNERS = [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]


def distribution(weight: np.ndarray) -> Net:
    """A convolution, the Softmax of its channels, and a convolution of them."""
    net = Net()
    x = net.conv(net.input("x", "N", 3, 6, 6), 3, len(weight[0]), name="head")
    x = net.add("Reshape", x, net.const(np.array([0, len(weight[0]), 36, 1])))
    x = net.add("Softmax", net.add("Transpose", x, perm=[0, 1, 3, 2]), axis=1)
    kernel = net.const(weight.astype(np.float32)[:, :, None, None])
    return net.output(net.add("Conv", x, kernel, name="decode", out="y"))


def corners(matrix: np.ndarray, op: str = "Exp") -> Net:
    net = Net()
    x = net.add("MatMul", net.input("x", "N", 9, 8), net.weight(8, 4), name="head")
    x = net.add(op, x) if op else x
    return net.output(net.add("MatMul", x, net.const(matrix), name="decode", out="y"))


def floats(net: Net, target=None) -> dict[str, str]:
    return dict(annotate(net.model(), target or cpu(), Bits()).float_nodes)


def test_the_mean_of_a_distribution_stays_float_and_the_head_does_not():
    reasons = floats(distribution(8 * np.arange(16.0)[None]))
    assert "mean of a distribution" in reasons["decode"] and "head" not in reasons


def test_a_learned_layer_behind_a_softmax_is_quantized():
    weight = np.random.default_rng(0).normal(0, 1, (3, 16))
    assert "decode" not in floats(distribution(weight))


def test_a_matrix_that_makes_corners_stays_float():
    reasons = floats(corners(np.float32(CORNERS)))
    assert "fixed numbers" in reasons["decode"] and "head" not in reasons


@pytest.mark.parametrize("op", ["", "Relu"])
def test_whole_numbers_directly_behind_a_layer_may_be_learned(op):
    assert "decode" not in floats(corners(np.float32(CORNERS), op))


def test_learned_numbers_behind_arithmetic_are_quantized():
    assert "decode" not in floats(corners(np.random.default_rng(0).normal(0, 1, (4, 4))))


def test_a_target_may_leave_the_pattern_out():
    without = replace(cpu(), float_patterns=("attention_mask",))
    assert "decode" not in floats(corners(np.float32(CORNERS)), without)
    assert pattern_reasons(list(corners(np.float32(CORNERS)).model().graph), ()) == {}


def test_targets_name_the_patterns_that_exist():
    assert set(FLOAT_PATTERNS) == set(NAMES)


def test_a_float_softmax_behind_moved_codes_is_not_made_an_integer_kernel(tmp_path):
    net = distribution(np.random.default_rng(0).normal(0, 1, (3, 16)))
    model = net.model()
    feeds = feeds_for(model)
    bind(model, feeds)
    rewritten(model)
    emitted, _ = quantized(model)
    kinds = {node.op_type for node in optimized(emitted, tmp_path).graph}
    assert "Softmax" in kinds and "QLinearSoftmax" not in kinds
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 25
