"""Fused operators of optimized files become standard ones; a transposed Gemm input, a Transpose."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import Net, changed, ops
from onnx import helper

from qtool.rewrites import REWRITES


def fused(op: str, activation: str, **attributes: object) -> onnx.ModelProto:
    net = Net()
    if op == "FusedConv":
        x, y_shape = net.input("x", "N", 3, 6, 6), net.weight(4, 3, 3, 3)
        inputs = [x, y_shape, net.weight(4)]
        attributes["pads"] = [1, 1, 1, 1]
    else:
        inputs = [net.input("x", "N", 6), net.weight(6, 4), net.weight(4)]
    net.output(net.add(op, *inputs, out="y", activation=activation, **attributes))
    net.nodes[-1].domain = "com.microsoft"
    proto = net.proto()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


@pytest.mark.parametrize(
    ("op", "activation", "attributes", "plain"),
    [
        ("FusedConv", "Relu", {}, ["Conv", "Relu"]),
        ("FusedConv", "LeakyRelu", {"activation_params": [0.3]}, ["Conv", "LeakyRelu"]),
        ("FusedConv", "HardSigmoid", {"activation_params": [0.3, 0.4]}, ["Conv", "HardSigmoid"]),
        ("FusedConv", "Tanh", {}, ["Conv", "Tanh"]),
        ("FusedConv", "Clip", {"activation_params": [0.0, 0.5]}, ["Conv", "Clip"]),
        ("FusedConv", "HardSwish", {}, ["Conv", "HardSwish"]),
        ("FusedGemm", "Relu", {}, ["Gemm", "Relu"]),
        ("FusedGemm", "LeakyRelu", {"activation_alpha": 0.3}, ["Gemm", "LeakyRelu"]),
    ],
)
def test_unfused_is_the_same_function(op, activation, attributes, plain):
    proto = fused(op, activation, **attributes)
    shape = (2, 3, 6, 6) if op == "FusedConv" else (2, 6)
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    want = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]
    model = ir.from_proto(proto)
    assert REWRITES["unfuse_microsoft"](model, lambda node: True) == 1
    assert ops(model) == plain and "com.microsoft" not in model.opset_imports
    got = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_an_unknown_activation_is_left():
    model = ir.from_proto(fused("FusedConv", "Relu"))
    model.graph[0].attributes["activation"] = ir.AttrString("activation", "Softsign2")
    assert REWRITES["unfuse_microsoft"](model, lambda node: True) == 0


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_a_transposed_input(transposed):
    net = Net()
    x = net.input("x", 6, "N")
    w = net.weight(4, 6) if transposed else net.weight(6, 4)
    net.output(net.add("Gemm", x, w, net.weight(4), out="y", transA=1, transB=transposed))
    feeds = {"x": np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)}
    model, count = changed(net, "normalize_gemm", feeds=feeds)
    assert count == 1 and ops(model) == ["Transpose", "Gemm"]
