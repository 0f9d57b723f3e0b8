"""The emitted file: what ONNX Runtime makes of it, names, shared scales, layers that stay float."""

from collections import Counter
from dataclasses import replace

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
    scale_of,
    sqnr,
)
from onnx import TensorProto, helper

from qtool import files
from qtool.emitters import emit_qdq, save_model
from qtool.errors import RecipeError
from qtool.graph.queries import by_name, constant, nodes_by_name
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.verification.kernels import kernels_part

# Per builder: kernels ONNX Runtime runs, and how often it converts.
RUNS = {
    "conv_bn_relu": "QLinearConv*2 QLinearGlobalAveragePool QGemm Pad Flatten QuantizeLinear",
    "residual": "QLinearConv*4 QLinearAdd QuantizeLinear DequantizeLinear",
    "option_a": "QLinearConv*4 QLinearAdd NhwcMaxPool Pad*2 QuantizeLinear DequantizeLinear",
    "depthwise": "QLinearConv*3 Pad QuantizeLinear DequantizeLinear",
    "inverted_bottleneck": "QLinearConv*5 QLinearAdd Pad QuantizeLinear DequantizeLinear",
    "fire": "QLinearConv*5 NhwcMaxPool QLinearConcat Pad QuantizeLinear DequantizeLinear",
    "squeeze_excite": "QLinearConv*4 QLinearGlobalAveragePool QLinearSigmoid QLinearMul"
    " QuantizeLinear DequantizeLinear",
    "transformer_mlp": "LayerNormalization QGemm*2 QLinearSigmoid QLinearMul Reshape*2 Add"
    " QuantizeLinear",
    "tied": "QLinearConv*2 QLinearGlobalAveragePool QGemm*2 Flatten QuantizeLinear",
}


def counted(words: str) -> Counter[str]:
    pairs = [w.partition("*") for w in words.split()]
    return Counter({op: int(times or 1) for op, _, times in pairs})


def prepared(net: Net, floats: frozenset[str] = frozenset()) -> ir.Model:
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model, floats=floats)
    return model


def executed(emitted: ir.Model, folder) -> Counter[str]:
    ops = Counter(n.op_type for n in optimized(emitted, folder).graph)
    del ops["Transpose"]  # to channels last and back, where the runtime likes
    return ops


@pytest.mark.parametrize("name", BUILDERS)
def test_a_network_runs_in_integers(name, tmp_path):
    net = BUILDERS[name]()
    model = prepared(net)
    emitted, plan = quantized(model)
    feeds = feeds_for(model, seed=7)
    want, got = run(net.proto(), feeds), run(emitted, feeds)
    # 8 bits lose about 38 dB in these nets; a wrong scale or a missing Relu leaves less than 20.
    assert sqnr(want["y"], got["y"]) > 30
    assert executed(emitted, tmp_path) == counted(RUNS[name])
    assert kernels_part(optimized(emitted, tmp_path), plan, []).stray_quantize == []


@pytest.mark.parametrize("name", BUILDERS)
def test_names_stay(name):
    model = prepared(BUILDERS[name]())
    emitted, plan = quantized(model)
    for ours, theirs in (
        (emitted.graph.inputs, model.graph.inputs),
        (emitted.graph.outputs, model.graph.outputs),
    ):
        assert [v.name for v in ours] == [v.name for v in theirs]
    absorbed = {site.nodes[-1] for site in plan.sites.values() if len(site.nodes) > 1}
    emitted_ops = {n.name: n.op_type for n in emitted.graph}
    for node in model.graph:
        assert node.name in absorbed or emitted_ops[node.name] == node.op_type
    made = [v.name for n in emitted.graph for v in n.outputs]
    assert len(set(made)) == len(made) and len(emitted_ops) == len(emitted.graph)
    missing = {v.name for n in model.graph for v in n.outputs} - set(made)
    assert all(by_name(model.graph)[v].producer().name in plan.integer_nodes for v in missing)


@pytest.mark.parametrize("name", BUILDERS)
def test_scales_have_rank_0_and_are_shared_by_grids(name):
    emitted, plan = quantized(prepared(BUILDERS[name]()))
    used: dict[str, set[tuple[str, str]]] = {}
    for node in emitted.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value = node.name.removesuffix(f"_{node.op_type}")
        scale = scale_of(node.inputs[1])
        per_tensor = plan.spec(value).granularity.name == "tensor"
        assert scale.shape == (() if per_tensor else (plan.codes[value].shape[_axis(plan, value)],))
        assert scale.dtype == np.float32
        used.setdefault(plan.grid_of[value], set()).add((node.inputs[1].name, node.inputs[0].dtype))
    assert all(len({scale for scale, _ in pairs}) == 1 for pairs in used.values())
    for initializer in emitted.graph.initializers.values():
        assert initializer.uses(), f"{initializer.name} is read by nothing"


def _axis(plan, value):
    return getattr(plan.spec(value).granularity, "axis", 0)


def test_the_same_plan_gives_the_same_bytes_and_leaves_the_model_alone():
    model = prepared(BUILDERS["squeeze_excite"]())
    before = ir.to_proto(model).SerializeToString()
    plan = frozen_plan(model)
    first, second = (ir.to_proto(emit_qdq(model, plan, cpu())) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    assert ir.to_proto(model).SerializeToString() == before


def test_zeros_that_a_pad_adds_are_zero_points(tmp_path):
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8, out="a")
    x = net.add("Pad", x, net.const(np.array([0, 1, 1, 0, 0, 1, 0, 2])), name="pad", out="b")
    net.output(net.conv(x, 10, 4, out="y"), "b")
    emitted, plan = quantized(prepared(net))
    pad = nodes_by_name(emitted.graph)["pad"]
    assert pad.inputs[0].dtype == ir.DataType.UINT8
    assert constant(pad.inputs[2]) == plan.params("a").zero_point != 0
    feeds = feeds_for(net.model())
    got = run(emitted, feeds)["b"]
    assert not got[:, 0].any() and not got[:, :, 0].any() and not got[..., -2:].any()
    assert sqnr(run(net.proto(), feeds)["b"], got) > 30


def test_values_in_the_middle_can_be_outputs(tmp_path):
    net = Net()
    net.conv(net.input("x", "N", 4, 8, 8), 4, 8, out="before")
    net.add("Relu", "before", out="mid")
    net.add("MaxPool", "mid", kernel_shape=[2, 2], out="pool")
    net.add("Transpose", "pool", perm=[0, 2, 3, 1], out="turned")
    net.output(net.conv("pool", 8, 4, out="y"), "before", "mid", "pool", "turned")
    emitted, _ = quantized(prepared(net))
    feeds = feeds_for(net.model())
    want, got = run(net.proto(), feeds), run(emitted, feeds)
    assert list(got) == list(want)
    assert all(sqnr(want[k], got[k]) > 30 for k in want)


def test_names_that_the_model_already_uses():
    net = Net()
    x, s = net.input("x", "N", 4, 8, 8), net.input("x_scale", "N", 8, 8, 8)
    w = net.weight(8, 4, 3, 3, name="y_scale")
    y = net.add("Conv", x, w, pads=[1] * 4, out="y", name="x_QuantizeLinear")
    y = net.add("Add", y, net.const(np.ones((8, 1, 1)), "y_zero_point"))
    net.output(net.conv(net.add("Add", y, s), 8, 4, out="x_quantized"))
    emitted, _ = quantized(prepared(net))
    feeds = feeds_for(net.model())
    got, want = run(emitted, feeds)["x_quantized"], run(net.proto(), feeds)["x_quantized"]
    assert sqnr(want, got) > 30


def test_shape_reads_codes(tmp_path):
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8, out="a")
    flat = net.add("Slice", net.add("Shape", x), *(net.const(np.array([k])) for k in (0, 1)))
    flat = net.add("Concat", flat, net.const(np.array([-1])), axis=0)
    x = net.add("Reshape", x, flat)
    net.output(net.add("Gemm", x, net.weight(512, 3), net.weight(3), out="y"))
    model = net.model()
    emitted, _ = quantized(model)
    assert [n.inputs[0].name for n in emitted.graph if n.op_type == "Shape"] == ["a_quantized"]
    feeds = feeds_for(model)
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30


def between(op: str) -> Net:
    """Integer layer -> op (named mid) -> Relu or nothing -> integer layer."""
    net, (kind, _, then) = Net(), op.partition("+")
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8)  # zero point in the middle of the codes
    if kind in ("Gemm", "MatMul"):
        x = net.add("Flatten", net.add("MaxPool", x, kernel_shape=[8, 8]))
        # An integer reader beside it, so that codes arrive here.
        net.output(net.add("Gemm", x, net.weight(8, 2), out="side"))
    options = {
        "Conv": ([net.weight(8, 8, 3, 3), net.weight(8)], {}),
        "ConvTranspose": ([net.weight(8, 8, 3, 3), net.weight(8)], {}),
        "Gemm": ([net.weight(8, 8), net.weight(8)], {"transB": 1}),
        "MatMul": ([net.weight(8, 8)], {}),
        "Add": ([x], {}),
        "Mul": ([x], {}),
        "Concat": ([x], {"axis": 1}),
        "AveragePool": ([], {"kernel_shape": [2, 2]}),
    }
    operands, attributes = options.get(kind, ([], {}))
    x = net.add(kind, x, *operands, name="mid", **attributes)
    x = net.add(then, x) if then else x
    if kind in ("Gemm", "MatMul"):
        return net.output(net.add("Gemm", x, net.weight(8, 3), net.weight(3), out="y"))
    return net.output(net.conv(x, 16 if kind == "Concat" else 8, 4, out="y"))


OPS = [
    *("Conv", "Conv+Relu", "ConvTranspose", "ConvTranspose+Relu", "Gemm", "Gemm+Relu", "MatMul"),
    *("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"),
    "Softmax",
]


@pytest.mark.parametrize("op", OPS)
def test_a_float_layer_is_float_in_the_runtime(op, tmp_path):
    floats = frozenset({"mid"})
    model = prepared(between(op), floats)
    plan = frozen_plan(model, Bits(layers=dict.fromkeys(floats, FLOAT)))
    assert plan.float_nodes["mid"] == "the recipe asks for float"
    emitted = emit_qdq(model, plan, cpu())
    ran = executed(emitted, tmp_path)
    kind = op.partition("+")[0]
    # The runtime takes the Mul in front of a float MatMul into its own FusedMatMul.
    assert ran[kind] + ran[f"Fused{kind}"] >= 1
    assert not ran[f"QLinear{kind}"] - (2 if kind == "Conv" else 0)
    assert ran["QGemm"] == (2 if kind in ("Gemm", "MatMul") else 0)
    # By hand or by DequantizeLinear: the same numbers to the last bit.
    plain = emit_qdq(model, plan, replace(cpu(), requantizes=()))
    assert "Cast" in ran and not any(n.op_type == "Cast" for n in plain.graph)
    feeds = feeds_for(model, seed=3)
    np.testing.assert_array_equal(run(emitted, feeds, 0)["y"], run(plain, feeds, 0)["y"])
    # Other data than was calibrated with: outliers are clipped, above all those of x * x.
    assert sqnr(run(model, feeds)["y"], run(emitted, feeds)["y"]) > 15


def test_the_runtime_would_have_fused_it(tmp_path):
    """If this fails, the runtime has changed its ways, and Cast, Sub, Mul may be needless."""
    floats = frozenset({"mid"})
    model = prepared(between("Conv+Relu"), floats)
    plan = frozen_plan(model, Bits(layers=dict.fromkeys(floats, FLOAT)))
    plain = emit_qdq(model, plan, replace(cpu(), requantizes=()))
    assert executed(plain, tmp_path)["QLinearConv"] == 3


def body(name: str, nodes, inputs=(), outputs=()):
    info = [helper.make_tensor_value_info(n, k, None if n == "acc" else ()) for n, k in inputs]
    outs = [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs]
    return helper.make_graph(nodes, name, info, outs)


def branches() -> Net:
    net = Net()
    h = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 4))
    float32 = TensorProto.FLOAT
    then = body("t", [helper.make_node("Exp", [h], ["t1"])], outputs=[("t1", float32)])
    other = body("e", [helper.make_node("Neg", [h], ["e1"])], outputs=[("e1", float32)])
    condition = net.add("Greater", net.add("ReduceSum", "x", keepdims=0), net.const(0.0))
    y = net.add("If", condition, then_branch=then, else_branch=other)
    return net.output(net.conv(y, 4, 4, out="y"))


def loop() -> Net:
    net = Net()
    h = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 4))
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Add", ["acc", h], ["sum"]),
    ]
    kinds = (TensorProto.BOOL, TensorProto.FLOAT)
    inputs = [("i", TensorProto.INT64), *zip(("go", "acc"), kinds, strict=True)]
    inside = body("b", nodes, inputs, list(zip(("go_on", "sum"), kinds, strict=True)))
    y = net.add("Loop", net.const(np.array(3)), net.const(np.array(True)), h, body=inside)
    return net.output(net.conv(y, 4, 4, out="y"))


@pytest.mark.parametrize("build", [branches, loop])
def test_bodies_read_what_they_captured(build):
    net = build()
    model = prepared(net)
    emitted, _ = quantized(model)
    feeds = feeds_for(model)
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30


def test_large_weights_go_to_a_file_of_their_own(tmp_path, monkeypatch):
    emitted, _ = quantized(prepared(BUILDERS["residual"]()))
    feeds = feeds_for(emitted)
    want = run(emitted, feeds)["y"]
    save_model(emitted, tmp_path / "one.onnx")
    monkeypatch.setattr(files, "EXTERNAL_BYTES", 100)
    save_model(emitted, tmp_path / "two.onnx")
    assert not (tmp_path / "one.onnx.data").exists() and (tmp_path / "two.onnx.data").exists()
    again = ir.external_data.load_to_model(ir.load(tmp_path / "two.onnx"))
    np.testing.assert_array_equal(run(again, feeds)["y"], want)
    lying = [v.const_value for v in emitted.graph.initializers.values()]
    lying = [t for t in lying if isinstance(t, ir.ExternalTensor)]
    assert lying and all(t.offset % 4096 == 0 and t.numpy().size == t.size for t in lying)
    with pytest.raises(RecipeError, match="the float model reads its weights from this file"):
        save_model(emitted, tmp_path / "two.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
