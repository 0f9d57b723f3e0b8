"""Reading ONNX files: what is upgraded, lifted, named, and that the meaning stays."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import psutil
import pytest
from models import Net, big_conv, feeds_for, residual, run
from onnx import helper, numpy_helper

from qtool import files
from qtool.graph.queries import dims, is_constant, release_weight_pages
from qtool.loading import bind_shapes, load_model
from qtool.loading.names import assign_node_names
from qtool.loading.onnx_loader import SMALL_BYTES

X = np.random.default_rng(0).normal(size=(2, 2, 4, 5)).astype(np.float32)
# Two float32 orders of the same short sums.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def one(op, opset, *constants, shape=X.shape, **attributes) -> Net:
    net = Net(opset=opset, ir_version=4)
    x = net.input("x", *shape)
    net.add(op, x, *map(net.const, constants), out="y", name="the_node", **attributes)
    return net.output("y")


def assert_same(net: Net, folder, feeds):
    loaded = net.load(folder)
    want, got = run(net.proto(), feeds), run(loaded, feeds)
    assert list(want) == list(got)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], **CLOSE)
    return loaded


@pytest.mark.parametrize("opset", range(7, 22))
def test_every_opset_is_raised_to_21_and_computes_the_same(opset, tmp_path):
    net = Net(opset=opset, ir_version=4)
    x = net.add("Relu", net.norm(net.conv(net.input("x", 2, 2, 4, 5), 2, 4), 4))
    axes = {"axes": [1]} if opset < 13 else {}
    x = net.add("MaxPool", x, kernel_shape=[2, 2])
    x = net.add("Squeeze", net.add("Unsqueeze", x, **axes), **axes) if opset < 13 else x
    x = net.add("Softmax", net.add("Flatten", x))
    net.output(net.add("Gemm", x, net.weight(48, 3), net.weight(3), out="y"))
    loaded = assert_same(net, tmp_path, {"x": X})
    assert loaded.opset_imports[""] == 21


@pytest.mark.parametrize("opset", range(22, 27))
def test_a_newer_opset_stays(opset, tmp_path):
    onnx.save(one("Relu", opset).proto(), tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    assert (loaded.model.opset_imports[""], loaded.notes) == (opset, ())


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 1.7, 1.3), (1, 1, 0.6, 0.7)])
def test_resize_10_keeps_its_meaning(mode, scales, tmp_path):
    assert_same(one("Resize", 10, np.float32(scales), mode=mode), tmp_path, {"x": X})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_keeps_its_meaning(mode, tmp_path):
    scales = [1.0, 1.0, 2.0, 3.0]
    assert_same(one("Upsample", 7, mode=mode, scales=scales), tmp_path, {"x": X})
    assert_same(one("Upsample", 9, np.float32(scales), mode=mode), tmp_path, {"x": X})


def test_resize_11_is_left_alone(tmp_path):
    net = Net(opset=11)
    args = [net.const(np.zeros(0, np.float32)), net.const(np.float32([1, 1, 1.7, 1.3]))]
    net.output(net.add("Resize", net.input("x", *X.shape), *args, out="y", mode="linear"))
    (node,) = [n for n in assert_same(net, tmp_path, {"x": X}).graph if n.op_type == "Resize"]
    assert "coordinate_transformation_mode" not in node.attributes


@pytest.mark.parametrize("axis", [None, 1, 2, 3])
@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_hardmax_keeps_its_meaning(opset, axis, tmp_path):
    attributes = {} if axis is None else {"axis": axis}
    net = one("Hardmax", opset, **attributes)
    loaded = assert_same(net, tmp_path, {"x": X})
    nodes = [n for n in loaded.graph if n.op_type == "Hardmax"]
    assert [n.name for n in nodes] == ["the_node"]
    assert len(loaded.graph) == (1 if axis == 3 else 4)


def test_old_hardmax_in_the_middle(tmp_path):
    net = Net(opset=11, ir_version=4)
    y = net.add("Hardmax", net.input("x", "N", 2, 4, 5))
    net.output(net.add("Add", y, y, out="z"), net.add("Neg", y, out="w"), y)
    assert_same(net, tmp_path, {"x": X})


def test_nodes_get_unique_names_and_keep_good_ones(tmp_path):
    net = Net()
    x = net.input("x", 1, 4)
    for name in ("r", "r", "r_1", "only"):
        x = net.add("Relu", x, name=name)
    net.output(net.add("Relu", x, out="y"))
    proto = net.proto()
    proto.graph.node[4].name = ""
    model = ir.from_proto(proto)
    assign_node_names(model)
    assert [n.name for n in model.graph] == ["r", "r_2", "r_1", "only", "Relu_y"]


def test_names_used_again_in_bodies_do_not_end_shape_inference(tmp_path):
    """Weights of bodies have the name of other weights outside: ONNX's inference takes those."""
    net = Net()
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 4)
    condition = net.add("Greater", net.add("ReduceMax", x, keepdims=0), net.const(100.0))
    body = Net(seed=1)
    body.output(body.conv(x, 4, 6, out="b"))
    graph = helper.make_graph(body.nodes, "body", [], body.outputs, body.constants)
    y = net.add("If", condition, then_branch=graph, else_branch=graph)
    path = tmp_path / "m.onnx"
    onnx.save(net.output(net.add("Relu", y, out="y")).proto(), path)
    model = load_model(path).model
    values = {v.name for g in model.graphs() for v in (*g.initializers.values(), *g.inputs)}
    assert sum(len(g.initializers) + len(g.inputs) for g in model.graphs()) == len(values)
    shapes = {node.op_type: dims(node.outputs[0]) for node in model.graph.all_nodes()}
    assert shapes["If"] == shapes["Relu"] == shapes["Conv"] == ("N", 6, 8, 8)


def branch(k: int, names: tuple[str, str]) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Constant", [], [f"k{k}"], value_float=float(k)),
        helper.make_node("Mul", ["x", f"k{k}"], [f"m{k}"], names[0]),
        helper.make_node("Relu", [f"m{k}"], [f"b{k}"], names[1]),
    ]
    return helper.make_graph(
        nodes, f"g{k}", [], [helper.make_tensor_value_info(f"b{k}", onnx.TensorProto.FLOAT, None)]
    )


def test_nodes_in_bodies_are_named_and_upgraded_too(tmp_path):
    net = Net(opset=12)
    x = net.input("x", *X.shape)
    then, other = branch(2, ("same", "other")), branch(3, ("same", ""))
    condition = net.add("Greater", net.add("ReduceMax", x, keepdims=0), net.const(0.0))
    net.output(net.add("If", condition, out="y", then_branch=then, else_branch=other))
    loaded = assert_same(net, tmp_path, {"x": X})
    names = [n.name for n in loaded.graph.all_nodes()]
    assert len(set(names)) == len(names) and all(names)
    assert_same(net, tmp_path, {"x": -abs(X)})


def test_constant_nodes_become_initializers(tmp_path):
    net = Net()
    x = net.input("x", 2, 4)
    tensor = numpy_helper.from_array(np.float32([[1], [2]]))
    x = net.add("Mul", x, net.add("Constant", value=tensor))
    x = net.add("Mul", x, net.add("Constant", value_float=2.0))
    net.output(net.add("Reshape", x, net.add("Constant", value_ints=[4, 2], out="to"), out="y"))
    loaded = assert_same(net, tmp_path, {"x": X[0, 0, :2, :4]})
    assert [n.op_type for n in loaded.graph] == ["Mul", "Mul", "Reshape"]
    assert is_constant(loaded.graph.initializers["to"])


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (9, 3)])
def test_initializers_that_are_inputs_too_become_constants(opset, ir_version, tmp_path):
    proto = residual().proto()
    proto.ir_version, proto.opset_import[0].version = ir_version, opset
    for t in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx").model
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert all(is_constant(n.inputs[1]) for n in model.graph if n.op_type == "Conv")
    feeds = feeds_for(model)
    np.testing.assert_allclose(run(model, feeds)["y"], run(proto, feeds)["y"], **CLOSE)


@pytest.mark.parametrize("external", [False, True])
def test_large_weights_survive_the_upgrade(external, tmp_path):
    proto, path = big_conv().proto(), tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    model = load_model(path).model
    assert model.graph.initializers["c0"].const_value.nbytes > SMALL_BYTES
    feeds = feeds_for(model)
    np.testing.assert_allclose(run(model, feeds)["y"], run(big_conv().proto(), feeds)["y"], **CLOSE)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert set(model.graph.initializers) == {"c0", "c1"}
    assert dims(model.graph.outputs[0]) == ("N", 32, 6, 6)


@pytest.mark.parametrize("location", ["w.bin", "deep/er/w.bin"])
def test_large_external_weights_stay_in_their_file(location, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    (tmp_path / location).parent.mkdir(parents=True, exist_ok=True)
    proto = big_conv().proto()
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0)
    held = {}
    for limit in (files.MAPPED_BYTES, 10_000):
        monkeypatch.setattr(files, "MAPPED_BYTES", limit)
        monkeypatch.chdir(tmp_path)  # a relative path leads to the same files
        loaded = load_model(Path("m.onnx"))
        tensors = {k: v.const_value for k, v in loaded.model.graph.initializers.items()}
        held[limit] = {k for k, t in tensors.items() if isinstance(t, ir.ExternalTensor)}
        assert loaded.notes == ("opset raised from 12 to 21",)
        assert loaded.size == path.stat().st_size + (tmp_path / location).stat().st_size
        for name, tensor in tensors.items():
            want = next(t for t in proto.graph.initializer if t.name == name)
            np.testing.assert_array_equal(
                tensor.numpy(), numpy_helper.to_array(want, str(tmp_path))
            )
    # What may be a shape is read: inference has to see it.
    assert list(held.values()) == [set(), {"c0"}]


def test_mapped_weights_give_their_memory_back(tmp_path, monkeypatch):
    net = Net()
    big = np.random.default_rng(0).normal(size=(2048, 4096)).astype(np.float32)
    net.output(net.add("MatMul", net.input("x", "N", 2048), net.const(big), out="y"))
    path = tmp_path / "m.onnx"
    onnx.save(net.proto(), path, save_as_external_data=True, location="w", size_threshold=0)
    monkeypatch.setattr(files, "MAPPED_BYTES", 10_000)
    model = load_model(path).model
    array = model.graph.initializers["c0"].const_value.numpy()
    assert array.sum(dtype=np.float64) == big.sum(dtype=np.float64)
    before = psutil.Process().memory_info().rss
    release_weight_pages(model)
    assert before - psutil.Process().memory_info().rss > 0.8 * big.nbytes
    assert array.sum(dtype=np.float64) == big.sum(dtype=np.float64)


def test_stale_shapes_are_inferred_again(tmp_path):
    proto = residual().proto()
    wrong = helper.make_tensor_value_info("v1", onnx.TensorProto.FLOAT, [1, 1, 1, 1])
    proto.graph.value_info.append(wrong)
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx").model
    shapes = {v.name: dims(v) for n in model.graph for v in n.outputs}
    assert shapes["v1"] == ("N", 8, 8, 8)


def test_binding_fixes_all_dimensions_but_the_first():
    net = Net()
    net.output(net.conv(net.input("x", "N", 3, "H", "W"), 3, 8, strides=[2, 2], out="y"))
    model = net.model()
    bind_shapes(model, {"x": (4, 3, 10, 12)})
    assert dims(model.graph.inputs[0]) == ("N", 3, 10, 12)
    assert dims(model.graph.outputs[0]) == ("N", 8, 5, 6)


def test_functions_are_inlined(tmp_path):
    body = [
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "NegRelu", ["a"], ["c"], body, opsets)
    net = one("Relu", 17)
    proto = net.proto()
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "NegRelu", "mine"
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx").model
    assert [n.op_type for n in model.graph] == ["Relu", "Neg"]
    np.testing.assert_array_equal(run(model, {"x": X})["y"], -np.maximum(X, 0))


def test_the_digest_is_of_the_file(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(residual().proto(), path)
    first = load_model(path)
    assert first.sha256 == load_model(path).sha256 and len(first.sha256) == 64
    path.write_bytes(residual().proto().SerializeToString() + b"\x3a\x00")
    assert load_model(path).sha256 != first.sha256
