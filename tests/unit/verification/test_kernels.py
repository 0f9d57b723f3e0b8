"""Kernels of the executed graph, rows of the layer table, and the environment."""

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import (
    BUILDERS,
    Net,
    bind,
    cpu,
    feeds_for,
    frozen_plan,
    optimized,
    quantized,
    rewritten,
    run,
)

from qtool.emitters import emit_qdq
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import PerChannel, PerTensor, QuantParams, QuantSpec
from qtool.verification.environment import environment, instruction_sets
from qtool.verification.file_size import file_parts
from qtool.verification.kernels import kernels_part
from qtool.verification.layers.table import layers_part, model_part, total_macs


def network(name: str, tmp_path) -> ir.Model:
    model = BUILDERS[name]().load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    return model


def test_parameters_and_macs_by_hand(tmp_path):
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 8, 8), 3, 4, name="conv"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(5, 4), net.weight(5), transB=1, out="y"))
    model = net.load(tmp_path)
    part = model_part(tmp_path / "net.onnx", "abc", model)
    assert part.parameters == 4 * 3 * 9 + 4 + 20 + 5
    assert part.macs == total_macs(model) == 4 * 3 * 9 * 64 + 20
    assert (part.path, part.sha256) == (str(tmp_path / "net.onnx"), "abc")


@pytest.mark.parametrize(
    ("name", "integer", "floating"),
    [
        ("conv_bn_relu", {"QLinearConv", "QGemm", "QLinearGlobalAveragePool"}, set()),
        ("residual", {"QLinearConv", "QLinearAdd"}, set()),
        ("depthwise", {"QLinearConv"}, set()),
        ("squeeze_excite", {"QLinearConv", "QLinearMul", "QLinearSigmoid"}, set()),
        ("transformer_mlp", {"QGemm"}, {"LayerNormalization"}),
    ],
)
def test_kernels_are_those_that_run(name, integer, floating, tmp_path):
    emitted, plan = quantized(network(name, tmp_path))
    kernels = kernels_part(optimized(emitted, tmp_path), plan, [])
    assert integer <= kernels.integer.keys()
    assert floating <= kernels.float.keys()
    assert not {"Conv", "Gemm", "MatMul"} & kernels.float.keys()
    assert kernels.stray_quantize == []


def test_unfused_graph_has_float_kernels_and_stray_nodes(tmp_path):
    """Check that unoptimized files have float kernels and stray nodes, so the counts can fail."""
    model = network("residual", tmp_path)
    emitted, plan = quantized(model)
    kernels = kernels_part(emitted, plan, [])
    assert not any(kernel.startswith("QLinear") for kernel in kernels.integer)
    assert kernels.float["Conv"] == 4
    assert len(kernels.stray_quantize) >= 8


def by_hand(*nodes: tuple[str, str, str, str]) -> ir.Model:
    """Build an executed graph x -> ... from (op, name, input, output)."""
    values = {"x": ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))}
    graph_nodes = []
    for op, name, source, out in nodes:
        node = ir.Node("", op, [values[source]], name=name)
        node.outputs[0].name, node.outputs[0].type = out, ir.TensorType(ir.DataType.FLOAT)
        values[out] = node.outputs[0]
        graph_nodes.append(node)
    graph = ir.Graph([values["x"]], [graph_nodes[-1].outputs[0]], nodes=graph_nodes)
    return ir.Model(graph, ir_version=10)


def test_a_stray_pair_is_named():
    """Check a layer of the plan that runs in floats; conversions of graph inputs are not stray."""
    plan = plan_with(np.full((1, 2, 1, 1), 127, np.int8))
    clean = [
        ("QuantizeLinear", "in", "x", "x_quantized"),
        ("QLinearConv", "s", "x_quantized", "y_quantized"),
        ("DequantizeLinear", "out", "y_quantized", "y"),
    ]
    kernels = kernels_part(by_hand(*clean), plan, [])
    assert kernels.saturation_risk is False
    assert kernels_part(by_hand(*clean), plan, ["s"]).saturation_risk == ["s"]
    assert (kernels.integer, kernels.float, kernels.stray_quantize) == ({"QLinearConv": 1}, {}, [])
    unfused = [
        clean[0],
        ("DequantizeLinear", "down", "x_quantized", "x_dequantized"),
        ("Conv", "s", "x_dequantized", "y"),
        ("QuantizeLinear", "up", "y", "y_quantized"),
        ("DequantizeLinear", "out", "y_quantized", "y_dequantized"),
    ]
    kernels = kernels_part(by_hand(*unfused), plan, [])
    assert (kernels.integer, kernels.float) == ({}, {"Conv": 1})
    assert kernels.stray_quantize == ["down", "up"]


def test_conversions_at_the_edges_are_not_stray(tmp_path):
    """Check that the pair around a float layer in the middle is not stray."""
    model = network("residual", tmp_path)
    middle = [n.name for n in model.graph if n.op_type == "Conv"][1]
    emitted, plan = quantized(model, Bits(layers=dict.fromkeys({middle}, FLOAT)))
    kernels = kernels_part(optimized(emitted, tmp_path), plan, [])
    assert kernels.stray_quantize == []
    assert kernels.float["Conv"] == 1


def plan_with(codes: np.ndarray, op: str = "Conv", axis: int | None = 0) -> QuantPlan:
    """Build a plan of one weighted site with these codes of weights."""
    granularity = PerTensor() if axis is None else PerChannel(axis)
    shape = () if axis is None else codes.shape[axis]
    spec = QuantSpec(8, True, True, granularity)
    grid = QuantParams(spec, np.ones(shape, np.float32), np.zeros(shape, np.int32))
    site = Site("s", op, ("s",), ("x",), "y", "w")
    return QuantPlan({"s": site}, grid_of={"w": "w"}, grids={"w": grid}, codes={"w": codes})


def test_layers_are_the_weighted_ones_in_order(tmp_path):
    model = network("residual", tmp_path)
    convs = [n.name for n in model.graph if n.op_type == "Conv"]
    plan = frozen_plan(model, Bits(layers=dict.fromkeys({convs[1]}, FLOAT)))
    _, parts = file_parts(emit_qdq(model, plan, replace(cpu(), packing=())))
    layers = layers_part(model, plan, {convs[0]: 30.12345, convs[2]: None}, parts)
    assert [layer.name for layer in layers] == convs
    first, second, third, _ = layers
    assert (first.weight_bits, first.activation_bits, first.granularity) == (8, 8, "channel")
    assert first.sqnr_db == 30.123
    assert (second.weight_bits, second.activation_bits, second.granularity) == (
        "float",
        "float",
        None,
    )
    assert second.sqnr_db is None and third.sqnr_db is None
    codes = plan.codes[plan.sites[convs[0]].weight]
    assert first.payload_bytes == codes.size + 8 * 4  # and its bias
    assert first.scale_bytes == 8 * (4 + 1) + 8 * 4  # scales and zero points, the bias's scales
    assert first.code_book_bytes == 0
    assert second.payload_bytes == 8 * 8 * 9 * 4 + 8 * 4 and second.scale_bytes == 0
    assert first.bytes == first.payload_bytes + first.scale_bytes


def test_environment_describes_the_machine():
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert {"torch", "onnxruntime", "onnx", "numpy", "cpu", "isa", "cores"} <= facts.keys()
    assert all(value not in (None, "") for value in facts.values())


def test_instruction_sets_come_from_the_kernel(monkeypatch, tmp_path):
    text = "flags\t\t: fpu sse2 avx2 avx512_vnni foo\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert instruction_sets() == ["avx2", "avx512_vnni"]

    def missing(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert instruction_sets() == []


def test_the_file_still_runs(tmp_path):
    """Check that outputs of a network above are finite and not constant."""
    model = network("squeeze_excite", tmp_path)
    emitted, _ = quantized(model)
    output = run(emitted, feeds_for(model))["y"]
    assert np.isfinite(output).all() and output.std() > 0
