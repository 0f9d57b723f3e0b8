"""16-bit float models become float32 inside; float16 inputs and outputs keep their type."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Net, run
from onnx import TensorProto, helper, numpy_helper

from qtool.loading import load_model
from qtool.loading.float16 import widen
from qtool.metrics.registry import sqnr_db
from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.recipe.loader import recipe_from_options


def low(kind: int, *, borders: bool) -> onnx.ModelProto:
    """Two linear layers, all in one 16-bit type; float32 outside when ``borders`` is False."""
    net = Net(opset=21, ir_version=10)
    x = net.input("x", "N", 8, dtype=kind if borders else TensorProto.FLOAT)
    x = x if borders else net.add("Cast", x, to=kind)
    y = net.add("MatMul", x, net.weight(8, 8, name="w1"))
    y = net.add("MatMul", y, net.weight(8, 4, name="w2"), out="y" if borders else "low")
    if not borders:
        net.add("Cast", y, to=1, out="y")
    net.output("y")
    if borders:
        net.outputs[0] = helper.make_tensor_value_info("y", kind, None)
    proto = net.proto()
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


@pytest.mark.parametrize("borders", [True, False])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_widened_weights_are_exact_and_float16_borders_stay(tmp_path, kind, borders):
    proto = low(kind, borders=borders)
    onnx.save(proto, tmp_path / "low.onnx")
    loaded = load_model(tmp_path / "low.onnx")
    model = loaded.model
    assert any("16-bit" in note for note in loaded.notes)
    for tensor in proto.graph.initializer:
        value = model.graph.initializers[tensor.name]
        assert value.dtype == ir.DataType.FLOAT
        np.testing.assert_array_equal(
            value.const_value.numpy(), numpy_helper.to_array(tensor).astype(np.float32)
        )
    keeps_type = borders and kind == TensorProto.FLOAT16  # numpy has no bfloat16
    expected = ir.DataType(kind) if keeps_type else ir.DataType.FLOAT
    assert model.graph.inputs[0].dtype == expected and model.graph.outputs[0].dtype == expected
    assert model.graph.outputs[0].name == "y"


def test_a_converted_model_is_stored_and_converted_again(tmp_path):
    onnx.save(low(TensorProto.FLOAT16, borders=True), tmp_path / "low.onnx")
    first = load_model(tmp_path / "low.onnx").model
    onnx.save(ir.to_proto(first), tmp_path / "again.onnx")
    again = load_model(tmp_path / "again.onnx").model
    assert len({n.name for n in again.graph}) == len(list(again.graph))
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float16)}
    once, twice = (run(ir.to_proto(m), feeds) for m in (first, again))
    np.testing.assert_array_equal(once["y"], twice["y"])


def test_float16_runs_as_before(tmp_path):
    proto = low(TensorProto.FLOAT16, borders=False)
    onnx.save(proto, tmp_path / "low.onnx")
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}
    want = run(proto, feeds)["y"]
    got = run(load_model(tmp_path / "low.onnx").model, feeds)["y"]
    # float16 keeps 11 bits: two products of eight terms
    np.testing.assert_allclose(got, want, atol=2e-2)


def test_bfloat16_is_quantized_from_its_float32_form(tmp_path):
    onnx.save(low(TensorProto.BFLOAT16, borders=True), tmp_path / "low.onnx")
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    recipe = recipe_from_options(tmp_path / "low.onnx", tmp_path / "x.npz")
    report = run_ptq(recipe, tmp_path / "o", RunOptions(threads=1))
    notes = report.stages[0].notes
    assert any(note.startswith("bfloat16: the float model is its float32 form") for note in notes)
    assert report.model.path == str(tmp_path / "low.onnx")
    assert report.kernels is not None and not report.kernels.float
    (float_form,) = (tmp_path / "o" / ".stages").glob("float-*.onnx")
    want, got = (run(onnx.load(f), {"x": x})["y"] for f in (float_form, tmp_path / "o/model.onnx"))
    assert want.dtype == got.dtype == np.float32
    assert sqnr_db(want, got) > 25  # 8 bits twice


def test_a_float32_model_is_left_alone():
    net = Net()
    model = net.output(net.add("Relu", net.input("x", "N", 4), out="y")).model()
    assert widen(model) == 0 and [n.op_type for n in model.graph] == ["Relu"]
