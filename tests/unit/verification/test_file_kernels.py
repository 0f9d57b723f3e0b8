"""Kernel counts of files without a plan."""

import numpy as np
import pytest
from models import Net

from qtool.verification.kernels import file_kernels


@pytest.mark.parametrize("between", [True, False])
def test_kernels_of_a_file_without_a_plan(between):
    net = Net(opset=21)
    s, z = net.const(np.float32(0.1)), net.const(np.uint8(0))
    x = net.add("Relu", net.input("x", 2, 4))
    q = net.add("QuantizeLinear", x, s, z, name="first")
    q = net.add("Transpose", q) if between else q
    d = net.add("DequantizeLinear", q, s, z, name="second")
    e = net.add("QuantizeLinear", net.add("Exp", d), s, z, name="third")
    e = net.add("Transpose", e) if between else e
    f = net.add("DequantizeLinear", e, s, z, name="fourth")
    net.output(net.add("Neg", f, out="y"))
    kernels = file_kernels(net.model(), int16_pairs=False)
    # Exp reads codes and writes codes in floats; adjacent pairs cancel.
    stray = ["second", "third"] if between else ["first", "fourth", "second", "third"]
    assert kernels.stray_quantize == stray
    assert (kernels.integer, kernels.float) == ({}, {"Exp": 1, "Neg": 1, "Relu": 1})


@pytest.mark.parametrize(("pairs", "largest", "risk"), [
    (True, 100, True), (True, 64, False), (False, 100, False)
])  # fmt: skip
def test_saturation_of_a_file_without_a_plan(pairs, largest, risk):
    net = Net(opset=21)
    w = net.const(np.array([[3, -largest]], np.int8))
    net.output(net.add("Cast", w, to=1, out="y"))
    assert file_kernels(net.model(), pairs).saturation_risk is risk
