"""Quantized files back to floats: what the float model computes is what the file computed."""

import logging

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import (
    BUILDERS,
    Net,
    big_conv,
    bind,
    cpu,
    feeds_for,
    ops,
    quantized,
    rewritten,
    run,
    sqnr,
)
from onnx import TensorProto, helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import qtool
from qtool.annotation.annotator import annotate
from qtool.errors import QtoolError, UnsupportedError
from qtool.graph.queries import constant, is_constant
from qtool.loading import load_model, load_requantized
from qtool.loading.dequantize.packed_weights import unpacked
from qtool.loading.onnx_loader import QUANTIZED_OPS
from qtool.quant.bit_widths import Bits

U8, S8 = QuantType.QUInt8, QuantType.QInt8
QDQ, QOPERATOR = QuantFormat.QDQ, QuantFormat.QOperator
# 8-bit rounding of every activation; a lost Relu, scale or zero point leaves less than 15 dB.
ROUNDING = 30


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Once(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter([feeds])

    def get_next(self):
        return next(self.feeds, None)


def back(proto, folder):
    """The file's float model, as it lies on disk; nothing quantized is left in it."""
    if isinstance(proto, ir.Model):
        proto = ir.to_proto(proto)
    onnx.save(proto, folder / "q.onnx")
    loaded = load_requantized(folder / "q.onnx", lambda parts: folder / "float.onnx")
    left = [n.op_type for n in loaded.model.graph.all_nodes() if n.op_type in QUANTIZED_OPS]
    assert not left
    assert [(v.name, v.type) for v in loaded.model.graph.inputs] == [
        (v.name, v.type) for v in ir.from_proto(proto).graph.inputs
    ]
    assert [(v.name, v.type) for v in loaded.model.graph.outputs] == [
        (v.name, v.type) for v in ir.from_proto(proto).graph.outputs
    ]
    return ir.load(folder / "float.onnx")


def assert_computes(proto, model, feeds, least=ROUNDING):
    want, got = run(proto, feeds), run(model, feeds)
    assert list(want) == list(got)
    for name, array in want.items():
        assert sqnr(array.astype(np.float64), got[name].astype(np.float64)) > least


def static(net, folder, feeds, **options):
    onnx.save(net.proto(), folder / "f.onnx")
    quantize_static(folder / "f.onnx", folder / "static.onnx", Once(feeds), **options)
    return onnx.load(folder / "static.onnx")


# Left out below: onnxruntime gives a Gemm of QOperator's `tied` the grid of another one, and its
# int8 `squeeze_excite` reaches 17 dB itself.
@pytest.mark.parametrize("types", [(U8, S8), (S8, S8), (U8, U8)], ids=str)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("form", [QDQ, QOPERATOR], ids=str)
@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in ("tied", "squeeze_excite")])
def test_files_of_quantize_static(name, form, per_channel, types, tmp_path):
    net = BUILDERS[name]()
    feeds = feeds_for(net.model())
    options = {"quant_format": form, "per_channel": per_channel}
    options |= {"activation_type": types[0], "weight_type": types[1]}
    proto = static(net, tmp_path, feeds, **options)
    assert_computes(proto, back(proto, tmp_path), feeds)


@pytest.mark.parametrize("name", BUILDERS)
def test_files_of_quantize_dynamic_get_their_products_back(name, tmp_path):
    net = BUILDERS[name]()
    feeds = feeds_for(net.model())
    onnx.save(net.proto(), tmp_path / "f.onnx")
    kinds = ["MatMul", "Gemm", "Conv"]
    quantize_dynamic(tmp_path / "f.onnx", tmp_path / "d.onnx", op_types_to_quantize=kinds)
    proto = onnx.load(tmp_path / "d.onnx")
    model = back(proto, tmp_path)
    assert_computes(proto, model, feeds)
    products = [n for n in model.graph if n.op_type in ("Conv", "MatMul", "Gemm")]
    assert len(products) == sum(n.op_type in kinds for n in net.proto().graph.node)
    assert all(is_constant(n.inputs[1]) for n in products)
    # A convolution's bias, which integer kernels add behind it, is its own again.
    assert all(len(n.inputs) == 3 for n in products if n.op_type == "Conv")


WIDTHS = [Bits(), Bits(weights=4), Bits(weights=3), Bits(weights=2), Bits(activations=6)]


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"W{b.weights}A{b.activations}")
@pytest.mark.parametrize("name", BUILDERS)
def test_our_own_files_round_trip(name, bits, tmp_path):
    model = BUILDERS[name]().load(tmp_path)
    feeds = feeds_for(model)
    bind(model, feeds)
    rewritten(model)
    emitted, plan = quantized(model, bits)
    restored = back(emitted, tmp_path)
    assert_computes(emitted, restored, feeds, ROUNDING if bits.activations == 8 else 15)
    again = load_model(tmp_path / "float.onnx").model
    bind(again, feeds)
    rewritten(again)
    count = sum(site.weight is not None for site in plan.sites.values())
    anew = annotate(again, cpu(), Bits())
    assert sum(site.weight is not None for site in anew.sites.values()) == count
    assert len(anew.sites) == len(plan.sites)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_packed_weights_of_our_own_files_become_constants(width, tmp_path):
    model = big_conv().load(tmp_path)
    feeds = feeds_for(model)
    bind(model, feeds)
    rewritten(model)
    emitted, _ = quantized(model, Bits(weights=width))
    restored = back(emitted, tmp_path)
    assert_computes(emitted, restored, feeds)
    assert all(is_constant(n.inputs[1]) for n in restored.graph if n.op_type == "Conv")


def as_optimized(proto, folder, level):
    """The graph that onnxruntime makes of a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel(level)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def test_files_that_onnxruntime_optimized(tmp_path):
    net = BUILDERS["conv_bn_relu"]()
    feeds = feeds_for(net.model())
    proto = static(net, tmp_path, feeds)
    optimized = as_optimized(proto, tmp_path, 2)
    assert {"QGemm", "QLinearGlobalAveragePool"} <= {n.op_type for n in optimized.graph.node}
    assert_computes(optimized, back(optimized, tmp_path), feeds)
    with pytest.raises(UnsupportedError, match="its channels come last"):
        back(as_optimized(proto, tmp_path, 99), tmp_path)
    kinds = ["MatMul", "Gemm"]
    quantize_dynamic(tmp_path / "f.onnx", tmp_path / "d.onnx", op_types_to_quantize=kinds)
    optimized = as_optimized(onnx.load(tmp_path / "d.onnx"), tmp_path, 2)
    assert "DynamicQuantizeMatMul" in [n.op_type for n in optimized.graph.node]
    assert_computes(optimized, back(optimized, tmp_path), feeds)


def recurrent() -> Net:
    """An LSTM and a product that is wide enough to be quantized at run time."""
    net = Net(21)
    weights = (net.weight(1, 256, 40), net.weight(1, 256, 64), net.weight(1, 512))
    net.add("LSTM", net.input("x", 20, 3, 40), *weights, out="s h c", hidden_size=64)
    h = net.add("Reshape", "h", net.const(np.array([3, 64])))
    h = net.add("Add", net.add("MatMul", h, net.weight(64, 32)), net.weight(32), out="y")
    return net.output(h, "s")


@pytest.mark.parametrize("ours", [True, False])
def test_recurrent_nets_with_scales_computed_at_run_time(ours, tmp_path):
    net = recurrent()
    model = net.load(tmp_path)
    feeds = feeds_for(model)
    if ours:
        proto = ir.to_proto(quantized(model, Bits(activations=None, dynamic=True))[0])
    else:
        onnx.save(net.proto(), tmp_path / "f.onnx")
        kinds = ["LSTM", "MatMul"]
        quantize_dynamic(tmp_path / "f.onnx", tmp_path / "d.onnx", op_types_to_quantize=kinds)
        proto = onnx.load(tmp_path / "d.onnx")
    assert "DynamicQuantizeLSTM" in [n.op_type for n in proto.graph.node]
    restored = back(proto, tmp_path)
    assert sorted(ops(restored)) == ["Add", "LSTM", "MatMul", "Reshape"]
    assert_computes(proto, restored, feeds)


def test_files_of_which_half_the_nodes_are_quantized(tmp_path):
    net = BUILDERS["residual"]()
    feeds = feeds_for(net.model())
    for form in (QDQ, QOPERATOR):
        proto = static(net, tmp_path, feeds, quant_format=form, nodes_to_exclude=["Conv1", "Conv4"])
        assert "Conv" in [n.op_type for n in proto.graph.node]
        assert_computes(proto, back(proto, tmp_path), feeds)


def grid(net, scale, zero, dtype=np.uint8):
    return net.const(np.float32(scale)), net.const(np.array(zero, dtype))


def test_a_relu_that_the_grid_did_stays(tmp_path):
    net = Net(opset=21)
    s, z = grid(net, 0.02, 0)
    x = net.conv(net.input("x", 1, 3, 6, 6), 3, 4, name="first")
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", x, s, z), s, z)
    net.output(net.conv(x, 4, 4, name="second", out="y"))
    model = back(net.proto(), tmp_path)
    assert ops(model) == ["Conv", "Clip", "Conv"]
    lo, hi = (float(constant(v)) for v in model.graph[1].inputs[1:])
    assert (lo, hi) == (0, pytest.approx(5.1))
    feeds = {"x": np.random.default_rng(0).normal(0, 4, (1, 3, 6, 6)).astype(np.float32)}
    assert_computes(net.proto(), model, feeds)


@pytest.mark.parametrize("before", ["Relu", "Sigmoid"])
def test_a_range_that_cuts_nothing_leaves_no_clip(before, tmp_path):
    net = Net(opset=21)
    s, z = grid(net, 1 / 255 if before == "Sigmoid" else 1.0, 0)
    x = net.add(before, net.conv(net.input("x", 1, 3, 6, 6), 3, 4))
    x = net.add("MaxPool", x, kernel_shape=[2, 2])
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", x, s, z), s, z)
    net.output(net.conv(x, 4, 4, out="y"))
    assert ops(back(net.proto(), tmp_path)) == ["Conv", before, "MaxPool", "Conv"]


def test_a_clip_and_the_cut_in_front_of_it_are_one(tmp_path):
    net = Net(opset=21)
    s, z = grid(net, 0.05, 0, np.int8)
    x = net.conv(net.input("x", 1, 3, 6, 6), 3, 4)
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", x, s, z), s, z)
    net.output(net.conv(net.add("Relu", x), 4, 4, out="y"))
    model = back(net.proto(), tmp_path)
    assert ops(model) == ["Conv", "Clip", "Conv"]
    assert float(constant(model.graph[1].inputs[1])) == 0
    assert float(constant(model.graph[1].inputs[2])) == pytest.approx(6.35)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int4", "uint4"])
@pytest.mark.parametrize("shape", ["tensor", "channel", "block"])
def test_constants_on_every_grid(dtype, shape, tmp_path):
    kind = ir.DataType[dtype.upper()].numpy()
    rng = np.random.default_rng(0)
    codes = rng.integers(0 if dtype[0] == "u" else -8, 8, (6, 8)).astype(kind)
    size = {"tensor": (), "channel": (8,), "block": (3, 8)}[shape]
    scale = rng.uniform(0.1, 1, size).astype(np.float32)
    zero = rng.integers(0, 1 if dtype == "int32" else 7, size).astype(kind)
    net = Net(opset=21, ir_version=10)
    net.input("x", 4, 6)
    tensors = {"w": codes, "s": scale, "z": zero}
    attributes = {"tensor": {}, "channel": {"axis": 1}, "block": {"axis": 0, "block_size": 2}}
    w = net.add("DequantizeLinear", *tensors, **attributes[shape])
    proto = net.output(net.add("MatMul", "x", w, out="y")).proto()
    for name, array in tensors.items():
        tensor = ir.Tensor(array, name=name)
        proto.graph.initializer.append(ir.to_proto(tensor))
    model = back(proto, tmp_path)
    assert ops(model) == ["MatMul"]
    step, offset = scale.astype(np.float64), zero.astype(np.float64)
    if shape == "block":
        step, offset = np.repeat(step, 2, 0), np.repeat(offset, 2, 0)
    want = (codes.astype(np.float64) - offset) * step
    np.testing.assert_allclose(constant(model.graph[0].inputs[1]), want, rtol=1e-6)


def test_float8_constants_and_activations(tmp_path):
    kind = ir.DataType.FLOAT8E4M3FN.numpy()
    rng = np.random.default_rng(0)
    net = Net(opset=21, ir_version=10)
    net.input("x", 4, 6)
    s = net.const(np.float32(0.5), "s")
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", "x", "s", "z"), s, "z")
    proto = net.output(net.add("MatMul", x, net.add("DequantizeLinear", "w", s), out="y")).proto()
    w = rng.normal(0, 1, (6, 3)).astype(kind)
    for name, array in (("w", w), ("z", np.zeros((), kind))):
        proto.graph.initializer.append(ir.to_proto(ir.Tensor(array, name=name)))
    model = back(proto, tmp_path)
    feeds = {"x": rng.normal(0, 9, (4, 6)).astype(np.float32)}
    want = feeds["x"] @ (w.astype(np.float32) / 2)
    np.testing.assert_allclose(run(model, feeds)["y"], want, rtol=1e-5, atol=1e-5)


def test_inputs_and_outputs_of_codes_keep_their_types(tmp_path):
    net = Net(opset=21)
    x = net.input("x", 1, 3, 6, 6, dtype=TensorProto.UINT8)
    (xs, xz), (ys, yz) = grid(net, 0.02, 120), grid(net, 0.1, 128)
    w = net.const(np.random.default_rng(0).integers(-99, 99, (4, 3, 3, 3)).astype(np.int8))
    ws, wz = grid(net, 0.01, 0, np.int8)
    net.add("QLinearConv", x, xs, xz, w, ws, wz, ys, yz, out="y")
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.UINT8, (1, 4, 4, 4)))
    model = back(net.proto(), tmp_path)
    feeds = {"x": np.random.default_rng(1).integers(0, 255, (1, 3, 6, 6)).astype(np.uint8)}
    want, got = run(net.proto(), feeds)["y"], run(model, feeds)["y"]
    assert got.dtype == np.uint8
    assert np.abs(want.astype(int) - got.astype(int)).max() <= 1


def test_codes_that_other_ops_read_are_computed_for_them(tmp_path):
    net = Net(opset=21)
    s, z = grid(net, 0.1, 100)
    q = net.add("QuantizeLinear", net.input("x", 4, 6), s, z)
    even = net.add("Mod", net.add("Cast", q, to=TensorProto.INT32), net.const(np.int32(2)))
    best = net.add("Cast", net.add("ArgMax", q, axis=1), to=TensorProto.FLOAT)
    both = net.add("Mul", net.add("Cast", even, to=TensorProto.FLOAT), best, out="y")
    proto = net.output(both).proto()
    feeds = {"x": np.random.default_rng(0).normal(0, 3, (4, 6)).astype(np.float32)}
    model = back(proto, tmp_path)
    np.testing.assert_array_equal(run(proto, feeds)["y"], run(model, feeds)["y"])


def test_other_operators_of_onnxruntime(tmp_path):
    net, rng = Net(opset=21), np.random.default_rng(0)
    (s, z), (t, v) = grid(net, 0.05, 130), grid(net, 0.04, 100)
    q = net.add("QuantizeLinear", net.input("x", 2, 4, 6, 6), s, z)
    ms = {"domain": "com.microsoft"}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], **ms}
    outputs = [
        net.add("QLinearAdd", q, s, z, q, s, z, t, v, **ms),
        net.add("QLinearMul", q, s, z, q, s, z, t, v, **ms),
        net.add("QLinearSigmoid", q, s, z, *grid(net, 1 / 256, 0), **ms),
        net.add("QLinearLeakyRelu", q, s, z, t, v, alpha=0.1, **ms),
        net.add("QLinearAveragePool", q, s, z, t, v, **pool),
        net.add("QLinearGlobalAveragePool", q, s, z, t, v, **ms),
        net.add("QLinearSoftmax", q, s, z, *grid(net, 1 / 256, 0), axis=-1, opset=13, **ms),
        net.add("QLinearConcat", t, v, q, s, z, q, s, z, axis=1, **ms),
    ]
    grids = {2: grid(net, 1 / 256, 0), 6: grid(net, 1 / 256, 0)}
    for k, codes in enumerate(outputs):
        net.output(net.add("DequantizeLinear", codes, *grids.get(k, (t, v)), out=f"y{k}"))
    proto = net.proto()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = back(proto, tmp_path)
    feeds = {"x": rng.normal(0, 2, (2, 4, 6, 6)).astype(np.float32)}
    assert_computes(proto, model, feeds, 25)


def test_packed_weights_of_matmul_nbits(tmp_path):
    rng = np.random.default_rng(0)
    net = Net(opset=21)
    packed = net.const(rng.integers(0, 256, (5, 2, 16)).astype(np.uint8))
    scales = net.const(rng.uniform(0.1, 1, 10).astype(np.float32))
    zeros = net.const(rng.integers(0, 256, 5).astype(np.uint8))
    shape = {"K": 50, "N": 5, "bits": 4, "block_size": 32, "domain": "com.microsoft"}
    x = net.input("x", 3, 50)
    net.output(net.add("MatMulNBits", x, packed, scales, zeros, out="y", **shape))
    proto = net.proto()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = back(proto, tmp_path)
    assert ops(model) == ["MatMul"]
    assert_computes(proto, model, {"x": rng.normal(size=(3, 50)).astype(np.float32)}, 60)


def test_codes_lie_in_the_lowest_bits_first():
    assert unpacked(np.array([0x21, 0x43]), 4).tolist() == [1, 2, 3, 4]
    assert unpacked(np.array([[0b11100100]]), 2).tolist() == [[0, 1, 2, 3]]


def test_an_embedding_of_codes_becomes_one_of_floats(tmp_path):
    net = Net(opset=21)
    s, z = grid(net, 0.1, 3, np.int8)
    table = net.const(np.arange(-20, 20).reshape(10, 4).astype(np.int8), "table")
    ids = net.input("ids", 2, 3, dtype=TensorProto.INT64)
    net.output(net.add("DequantizeLinear", net.add("Gather", table, ids), s, z, out="y"))
    model = back(net.proto(), tmp_path)
    assert ops(model) == ["Gather"] and model.graph[0].inputs[0].dtype == ir.DataType.FLOAT
    assert_computes(net.proto(), model, {"ids": np.array([[0, 3, 9], [1, 1, 2]])}, 100)


def test_qonnx_quant_is_its_input_limited(tmp_path):
    net = Net(opset=21)
    numbers = [net.const(np.float32(v)) for v in (0.5, 0, 4)]
    x = net.conv(net.input("x", 1, 3, 6, 6), 3, 4)
    x = net.add("Quant", x, *numbers, domain="qonnx.custom_op.general", signed=0, narrow=0)
    proto = net.output(net.conv(x, 4, 4, out="y")).proto()
    proto.opset_import.append(helper.make_opsetid("qonnx.custom_op.general", 1))
    model = back(proto, tmp_path)
    assert ops(model) == ["Conv", "Clip", "Conv"]
    assert [float(constant(v)) for v in model.graph[1].inputs[1:]] == [0, 7.5]


def test_what_has_no_float_form_is_named(tmp_path):
    net = Net(opset=21)
    x = net.input("x", 2, 6)
    net.output(net.add("QOrderedGelu", x, out="y", name="odd", domain="com.microsoft"))
    s, z = grid(net, 0.1, 0)
    net.output(net.add("DequantizeLinear", net.add("QuantizeLinear", x, s, z), s, z, out="v"))
    net.nodes[0].op_type = "BipolarQuant"
    with pytest.raises(UnsupportedError, match=r'"odd" \(BipolarQuant\); give the float model'):
        back(net.proto(), tmp_path)


def test_a_computed_scale_that_does_not_cancel_is_named(tmp_path):
    net = Net(opset=21)
    x = net.input("x", 2, 6)
    net.add("DynamicQuantizeLinear", x, out="q s z", name="dynamic")
    net.output(net.add("Cast", net.add("Mod", "q", "q"), to=TensorProto.FLOAT, out="y"))
    with pytest.raises(UnsupportedError, match=r"\(Mod\) back to float.*computed at run time"):
        back(net.proto(), tmp_path)


def test_a_float_model_is_used_as_it_is(tmp_path):
    onnx.save(BUILDERS["residual"]().proto(), tmp_path / "f.onnx")
    loaded = load_requantized(tmp_path / "f.onnx", lambda parts: tmp_path / "never.onnx")
    assert loaded.path == tmp_path / "f.onnx" and not (tmp_path / "never.onnx").exists()
    assert "nothing is quantized" in loaded.notes[-1]


def test_the_python_api_keeps_the_float_file_as_long_as_the_model(tmp_path):
    net = BUILDERS["residual"]()
    feeds = feeds_for(net.model())
    onnx.save(static(net, tmp_path, feeds), tmp_path / "q.onnx")
    with pytest.raises(UnsupportedError, match="requantize=True in Python"):
        qtool.load(tmp_path / "q.onnx")
    model = qtool.load(tmp_path / "q.onnx", requantize=True)
    assert model.name == str(tmp_path / "q.onnx") and model.path.is_file()
    assert_computes(onnx.load(tmp_path / "q.onnx"), onnx.load(model.path), feeds)
    plan = qtool.quantize(model, [feeds])
    file = qtool.emit(model, plan, tmp_path / "again.onnx")
    assert_computes(onnx.load(tmp_path / "q.onnx"), onnx.load(file), feeds)


@pytest.mark.parametrize("source", ["net.pt2", None])
def test_torch_networks_have_nothing_to_turn_back(source):
    with pytest.raises(QtoolError, match=r"requantize: found.*expected an ONNX file"):
        qtool.load(source or object(), requantize=True)
