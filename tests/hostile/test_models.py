"""Model files that are missing, damaged, quantized already, or that no opset can save."""

import re
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Net, big_conv, residual
from onnx import TensorProto, helper, numpy_helper

import qtool
from qtool.errors import ModelError, UnsupportedError
from qtool.loading import load_model
from qtool.runtime.ort_session import OrtSession

RANDOM = np.random.default_rng(0).bytes(400)


def refused(path, kind: type[Exception]) -> str:
    """The message; its first words must name the file, its exit code must fit."""
    with pytest.raises(kind) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(f"model {path}: ")
    assert getattr(caught.value, "exit_code", None) == {ModelError: 2, UnsupportedError: 3}[kind]
    return text


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_no_file(name, tmp_path):
    assert "no such file; expected an .onnx file" in refused(tmp_path / name, ModelError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.pth", "weights of a torch network without its code, expected an .onnx, .pt2 or .pt"),
        ("nets:resnet", 'write a recipe with model: {torch: "nets:resnet", weights: FILE.safeten'),
    ],
)
def test_what_a_torch_network_needs_is_said(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.pth").write_bytes(RANDOM)
    text = refused(Path(name), ModelError)
    assert message in text and "--trust-code" in text


@pytest.mark.parametrize("content", [RANDOM, bytes(64), b"model: resnet.onnx\n" * 9])
def test_not_a_model(content, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    text = refused(path, ModelError)
    assert "not a readable ONNX file" in text and "export it again" in text


def test_an_empty_file(tmp_path):
    path = tmp_path / "m.onnx"
    path.touch()
    assert "the graph has no nodes or no outputs" in refused(path, ModelError)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(share, tmp_path):
    whole = residual().proto().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a readable ONNX file" in refused(path, ModelError)


def test_no_nodes(tmp_path):
    net = Net()
    net.output(net.input("x", 1))
    onnx.save(net.proto(), tmp_path / "m.onnx")
    assert "the graph has no nodes" in refused(tmp_path / "m.onnx", ModelError)


def test_a_value_that_nothing_makes(tmp_path):
    net = Net()
    net.add("Add", net.input("x", 1), "ghost", out="y", name="sum")
    onnx.save(net.output("y").proto(), tmp_path / "m.onnx")
    assert 'node "sum" reads "ghost", which nothing makes' in refused(
        tmp_path / "m.onnx", ModelError
    )


def test_a_value_that_nothing_makes_inside_a_body(tmp_path):
    inner = helper.make_node("Neg", ["ghost"], ["b"])
    info = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)
    body = helper.make_graph([inner], "g", [], [info])
    net = Net()
    condition = net.add("Greater", net.input("x"), net.const(0.0))
    net.output(net.add("If", condition, out="y", then_branch=body, else_branch=body, name="if"))
    onnx.save(net.proto(), tmp_path / "m.onnx")
    assert 'reads "ghost"' in refused(tmp_path / "m.onnx", ModelError)


@pytest.fixture
def external(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(big_conv().proto(), path, save_as_external_data=True, location="w", size_threshold=0)
    return path


def test_external_data_is_missing(external):
    (external.parent / "w").unlink()
    text = refused(external, ModelError)
    assert 'the weights of "c0"' in text and "put the external data file next to" in text


def set_external_data(path, **entries: str) -> None:
    """Change entries of the external data of the first weight."""
    proto = onnx.load(path, load_external_data=False)
    external_data = {e.key: e for e in proto.graph.initializer[0].external_data}
    for key, value in entries.items():
        external_data[key].value = value
    path.write_bytes(proto.SerializeToString())


def test_external_data_at_an_absolute_path(external):
    set_external_data(external, location=str(external.parent / "w"))
    text = refused(external, ModelError)
    assert f'the weights of "c0" lie in {external.parent}/w, an absolute path' in text


@pytest.mark.parametrize("location", ["../w", "deep/../../w", "../{}/../w"])
def test_external_data_outside_of_the_folder(location, external):
    location = location.format(external.parent.name)
    set_external_data(external, location=location)
    text = refused(external, ModelError)
    assert f'"c0" lie in {location}, which leads out of the model\'s folder' in text


def test_external_data_behind_a_link(external, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "w"
    (external.parent / "w").rename(elsewhere)
    (external.parent / "w").symlink_to(elsewhere)
    text = refused(external, ModelError)
    assert "a link out of the model's folder" in text and "put a copy of the file there" in text


def test_external_data_with_hard_links(external):
    (external.parent / "again").hardlink_to(external.parent / "w")
    assert "which has 2 hard links; put a copy of it there" in refused(external, ModelError)


@pytest.mark.parametrize(("key", "value"), [("offset", "200"), ("length", "40")])
def test_external_data_that_does_not_fit(key, value, external):
    set_external_data(external, **{key: value})
    text = refused(external, ModelError)
    assert 'the weights of "c0"' in text and "expected" in text


@pytest.mark.parametrize(
    ("location", "words"),
    [("gone", "missing"), ("/etc/passwd", "an absolute path"), ("../w", "leads out of the model")],
)
def test_external_data_of_a_body(location, words, tmp_path):
    inner = [helper.make_node("Mul", ["x", "k"], ["b"])]
    info = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.ones(4, np.float32), "k")
    body = helper.make_graph(inner, "g", [], [info], [weight])
    net = Net()
    x = net.input("x", 4)
    condition = net.add("Greater", net.add("ReduceSum", x, keepdims=0), net.const(0.0))
    net.output(net.add("If", condition, out="y", then_branch=body, else_branch=body))
    proto = net.proto()
    for branch in proto.graph.node[-1].attribute:
        tensor = branch.g.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    onnx.save(proto, tmp_path / "m.onnx")
    text = refused(tmp_path / "m.onnx", ModelError)
    assert 'the weights of "k" lie in' in text and words in text


def test_external_data_is_cut_short(external):
    data = external.parent / "w"
    data.write_bytes(data.read_bytes()[:100])
    text = refused(external, ModelError)
    assert 'the weights of "c0"' in text and "ends at byte 100, expected at least" in text


@pytest.mark.parametrize(
    ("op", "domain"), [("DynamicQuantizeLinear", ""), ("QLinearAdd", "com.microsoft")]
)
def test_quantized_already(op, domain, tmp_path):
    net = Net()
    net.nodes.append(helper.make_node(op, [net.input("x", 4)], ["q", "s", "z"], "it", domain))
    proto = net.output(net.add("Relu", "x", out="y")).proto()
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(proto, tmp_path / "m.onnx")
    text = refused(tmp_path / "m.onnx", UnsupportedError)
    assert f'already quantized: 1 nodes of kind {op}, the first is "it"' in text
    assert "give the float model it was made from" in text


def test_quantized_inside_a_body(tmp_path):
    inner = helper.make_node("DynamicQuantizeLinear", ["x"], ["b", "s", "z"], "deep")
    info = helper.make_tensor_value_info("b", onnx.TensorProto.UINT8, None)
    body = helper.make_graph([inner], "g", [], [info])
    net = Net()
    x = net.input("x", 4)
    condition = net.add("Greater", net.add("ReduceMax", x, keepdims=0), net.const(0.0))
    net.add("If", condition, out="y", then_branch=body, else_branch=body)
    onnx.save(net.output("y").proto(), tmp_path / "m.onnx")
    assert 'the first is "deep"' in refused(tmp_path / "m.onnx", UnsupportedError)


def test_an_opset_too_old_for_any_converter(tmp_path):
    proto = residual().proto()
    proto.opset_import[0].version = 1
    onnx.save(proto, tmp_path / "m.onnx")
    text = refused(tmp_path / "m.onnx", UnsupportedError)
    assert "opset 1 cannot be raised to 21" in text and "opset 13 or newer" in text


@pytest.mark.parametrize("scales", [None, (1, 1, 2, 0.5)])
def test_a_nearest_resize_without_a_new_form(scales, tmp_path):
    net = Net(opset=10, ir_version=5)
    x = net.input("x", 1, 2, 4, 4)
    sizes = net.input("s", 4) if scales is None else net.const(np.float32(scales))
    net.output(net.add("Resize", x, sizes, out="y", mode="nearest", name="up"))
    onnx.save(net.proto(), tmp_path / "m.onnx")
    text = refused(tmp_path / "m.onnx", UnsupportedError)
    assert 'node "up": a nearest Resize from before opset 11' in text
    assert "export the model again with opset 11 or newer" in text


def test_an_upgrade_that_fails_above_13_is_only_a_note(tmp_path):
    net = Net(opset=17)
    net.output(net.add("NoSuchOp", net.input("x", 4), out="y"))
    onnx.save(net.proto(), tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    assert loaded.notes[0].startswith("opset 17 kept: raising it to 21 failed (")


def test_a_model_the_runtime_cannot_load_is_unsupported_not_a_crash():
    net = Net()
    net.output(net.add("NoSuchOp", net.input("x", 4), out="y", name="odd"))
    with pytest.raises(UnsupportedError, match=r"ONNX Runtime cannot load the model.*NoSuchOp"):
        OrtSession(net.model())


def saved(proto, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def two_layers() -> onnx.ModelProto:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", 4, 3, 8, 8), 3, 4, name="first"))
    return net.output(net.conv(x, 4, 2, out="y", name="second")).proto()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.dims.append(2**62), r'initializer "c0" holds 432 bytes, but FLOAT \[4, 3, 3,'),
        (lambda t: t.dims.__setitem__(0, 5), "holds 432 bytes, but FLOAT .* takes 540"),
        (lambda t: t.dims.__setitem__(0, -1), r'initializer "c0" has the dims \[-1, 3, 3, 3\]'),
        (lambda t: setattr(t, "data_type", 99), "the unknown element type 99"),
        (lambda t: setattr(t, "data_type", 0), "the unknown element type 0"),
        (lambda t: setattr(t, "data_type", TensorProto.INT4), "but INT4 .* takes 54"),
        (lambda t: setattr(t, "data_type", TensorProto.STRING), "holds 0 texts, but STRING"),
        (lambda t: t.ClearField("raw_data"), "holds 0 elements in float_data"),
    ],
)
def test_a_tensor_that_is_not_what_it_says(change, words, tmp_path):
    proto = two_layers()
    change(proto.graph.initializer[0])
    assert re.search(words, refused(saved(proto, tmp_path), ModelError))


def test_a_tensor_in_a_body_that_is_not_what_it_says(tmp_path):
    proto = two_layers()
    body = helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.ones(4), "k")])
    body.initializer[0].dims[0] = 5
    proto.graph.node[0].attribute.append(helper.make_attribute("then_branch", body))
    assert 'initializer "k" holds 32 bytes' in refused(saved(proto, tmp_path), ModelError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda node: node.attribute[0].ClearField("type"), '"pads" of node "first" has no type'),
        (lambda node: node.ClearField("output"), 'node "first" has no outputs'),
    ],
)
def test_a_node_that_no_graph_can_hold(change, words, tmp_path):
    proto = two_layers()
    change(proto.graph.node[0])
    assert words in refused(saved(proto, tmp_path), ModelError)


@pytest.mark.parametrize("word", [b"Relu", b"second", b"w_first"])
def test_a_text_that_is_not_utf8(word, tmp_path):
    proto = two_layers()
    proto.graph.initializer[0].external_data.add(key="w_first")
    path = saved(proto, tmp_path)
    path.write_bytes(path.read_bytes().replace(word, word[:-1] + b"\xff"))
    assert "is not UTF-8; the file is damaged" in refused(path, ModelError)


@pytest.mark.parametrize("version", [0, -2])
def test_an_opset_that_does_not_exist(version, tmp_path):
    proto = two_layers()
    proto.opset_import[0].version = version
    assert "expected 1 or more" in refused(saved(proto, tmp_path), ModelError)


@pytest.mark.slow
def test_ten_thousand_nodes_are_read_in_linear_time(tmp_path):
    seconds = []
    for count in (2500, 10000):
        net = Net()
        x = net.input("x", "N", 4)
        for _ in range(count // 2):
            x = net.add("Relu", net.add("Add", x, x))
        path = saved(net.output(net.add("Neg", x, out="y")).proto(), tmp_path)
        start = time.process_time()
        assert len(load_model(path).model.graph) == count + 1
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0], seconds


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Reshape"])
def test_a_vector_that_no_machine_holds(tmp_path, operator):
    """Data propagation of shape inference would keep each of its elements."""
    net = Net()
    x = net.input("x", "N", 4)
    size = net.const(np.array([7 * 10**17], np.int64))
    inputs = [net.add("Shape", x), size] if operator == "Reshape" else [size]
    vector = net.add("Cast", net.add(operator, *inputs), to=onnx.TensorProto.FLOAT)
    proto = net.output(net.add("Add", x, net.add("ReduceSum", vector), out="y")).proto()
    text = refused(saved(proto, tmp_path), ModelError)
    assert f"({operator}) reads and writes" in text and "[700000000000000000]" in text


def test_an_attribute_whose_type_its_content_lacks(tmp_path):
    proto = two_layers()
    proto.graph.node[0].attribute[0].type = onnx.AttributeProto.TENSOR
    assert 'of node "first" has the unknown element type 0' in refused(
        saved(proto, tmp_path), ModelError
    )


NODE = r'"wide" \(Conv\) reads and writes .* a call of 2 samples, of which "\w+" \[N, 4'
COMPARED = "comparing its outputs takes 0.1 GB for one call"


@pytest.mark.parametrize(
    ("last", "limit", "words"), [("GlobalAveragePool", 20e6, NODE), ("Relu", 33e6, COMPARED)]
)
def test_two_samples_that_no_memory_holds(tmp_path, monkeypatch, last, limit, words):
    net = Net()
    wide = net.conv(net.input("x", "N", 3, 4, 4), 3, 4, pads=[500] * 4, name="wide")
    onnx.save(net.output(net.add(last, wide, out="y")).proto(), tmp_path / "m.onnx")
    np.save(tmp_path / "d.npy", np.ones((4, 3, 4, 4), np.float32))
    monkeypatch.setattr("qtool.loading.size_checks.usable_memory", lambda: limit)
    recipe = {"model": str(tmp_path / "m.onnx"), "calibrate": {"arrays": str(tmp_path / "d.npy")}}
    with pytest.raises(ModelError, match=words):
        qtool.run_ptq(recipe, tmp_path / "run")


def test_a_batch_that_no_machine_holds(tmp_path):
    proto = two_layers()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 10**9
    text = refused(saved(proto, tmp_path), ModelError)
    assert 'node "first" (Conv) reads and writes 1,792.0 GB for one call' in text
    assert '"v0" [1000000000, 4, 8, 8]' in text and "a smaller batch" in text
