"""Graphs of kinds that other projects' files have: a right file, or a sentence."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import Net
from onnx import TensorProto, helper
from typer.testing import CliRunner

from qtool.cli.main import app

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ptq(proto, folder, **arrays):
    onnx.save(proto, folder / "m.onnx")
    np.savez(folder / "d.npz", **arrays)
    words = ["ptq", "--model", "m.onnx", "--data", "d.npz", "--out", "o", "--threads", "1"]
    return CliRunner().invoke(app, words)


def outputs(path, feeds):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def close(folder, feeds, db=20.0):
    """Check the first output of the file against that of the float model."""
    want, got = (outputs(folder / f, feeds)[0] for f in ("m.onnx", "o/model.onnx"))
    assert got.shape == want.shape
    assert 10 * np.log10((want**2).sum() / max(((want - got) ** 2).sum(), 1e-30)) > db


def images(count=12):
    return RNG.normal(size=(count, 3, 8, 8)).astype(np.float32)


def sized(*shape):
    """A small network whose input is written with these sizes."""
    net = Net(opset=12)
    x = net.conv(net.input("x", *shape), 3, 4)
    net.output(net.conv(net.add("Relu", x), 4, 2, out="y"), shape=(shape[0], 2, *shape[2:]))
    return net.proto()


@pytest.mark.parametrize("shape", [(-1, 3, -1, -1), (0, 3, 8, 8), (0, 3, 0, 0), (-1, 3, 8, 8)])
def test_sizes_written_as_minus_one_or_zero_are_open(shape, tmp_path):
    found = ptq(sized(*shape), tmp_path, x=images())
    assert found.exit_code == 0, found.output
    want = outputs_of_open(sized("N", 3, "H", "W"), tmp_path)
    got = outputs(tmp_path / "o" / "model.onnx", {"x": images()[:2]})[0]
    assert got.shape == want


def outputs_of_open(proto, folder):
    onnx.save(proto, folder / "open.onnx")
    return outputs(folder / "open.onnx", {"x": images()[:2]})[0].shape


def test_a_number_for_all_samples_is_fed(tmp_path):
    net = Net()
    x = net.add("Mul", net.input("x", "N", 8), net.input("s"))
    net.output(net.add("Relu", net.add("Gemm", x, net.weight(8, 6), net.weight(6)), out="y"))
    rows = RNG.normal(size=(32, 8)).astype(np.float32)
    for number in (np.float32(0.5), np.full(32, 0.5, np.float32)):
        found = ptq(net.proto(), tmp_path, x=rows, s=number)
        assert found.exit_code == 0, found.output
        close(tmp_path, {"x": rows[:4], "s": np.array(0.5, np.float32)})


def test_several_numbers_for_all_samples_are_fed_one_by_one(tmp_path):
    net = Net()
    x = net.add("Mul", net.input("x", "N", 8), net.input("s"))
    net.output(net.add("Gemm", x, net.weight(8, 6), net.weight(6), out="y"))
    rows = RNG.normal(size=(32, 8)).astype(np.float32)
    found = ptq(net.proto(), tmp_path, x=rows, s=np.linspace(0.5, 1, 32, dtype=np.float32))
    assert found.exit_code == 0, found.output
    words = " ".join(found.output.split())
    assert 'one by one: the input "s", one array for all samples, differs' in words
    close(tmp_path, {"x": rows[:4], "s": np.array(0.75, np.float32)})


def stateful():
    """An LSTM whose state has its batch axis second, while the graph calls it the first."""
    net = Net(opset=14)
    x, h = net.input("x", "N", 5, 8), net.input("h", "N", 6)
    state = net.add("Unsqueeze", h, net.const(np.array([0])))
    steps = net.add("Reshape", x, net.const(np.array([5, -1, 8])))
    steps = net.add("Reshape", steps, net.const(np.array([-1, 1, 8])))
    weights = (net.weight(1, 24, 8), net.weight(1, 24, 6), net.weight(1, 48))
    net.add("LSTM", steps, *weights, "", state, state, out="seq last", hidden_size=6)
    last = net.add("Squeeze", "last", net.const(np.array([0])))
    return net.output(net.add("Gemm", last, net.weight(6, 3), net.weight(3), out="y")).proto()


def test_a_state_that_takes_one_sample_is_fed_one_by_one(tmp_path):
    x = RNG.normal(size=(16, 5, 8)).astype(np.float32)
    h = RNG.normal(size=(16, 6)).astype(np.float32)
    found = ptq(stateful(), tmp_path, x=x, h=h)
    assert found.exit_code == 0, found.output
    assert "one by one" in found.output
    close(tmp_path, {"x": x[:1], "h": h[:1]})


def test_samples_that_depend_on_their_batch_are_fed_one_by_one(tmp_path):
    net = Net()
    x = net.input("x", "N", 8)
    y = net.add("Gemm", x, net.weight(8, 6), net.weight(6))
    net.output(net.add("Softmax", y, out="y", axis=0))
    rows = RNG.normal(size=(16, 8)).astype(np.float32)
    found = ptq(net.proto(), tmp_path, x=rows)
    assert found.exit_code == 0 and "depends on the rest of its batch" in " ".join(
        found.output.split()
    )


@pytest.mark.parametrize("shape", [(2, 16, 6), (16, 2, 1, 6), (2, 1, 6), (16, 1, 6)])
def test_states_with_another_first_axis(shape, tmp_path):
    """Along their batch axis, as whole inputs, or one for all samples; anything else is refused."""
    net = Net()
    x = net.add("Gemm", net.input("x", 1, 8), net.weight(8, 6), net.weight(6))
    state = net.add("ReduceSum", net.input("h", 2, 1, 6), net.const(np.array([0])), keepdims=0)
    net.output(net.add("Add", x, state, out="y"))
    rows, h = (RNG.normal(size=size).astype(np.float32) for size in ((16, 8), shape))
    found = ptq(net.proto(), tmp_path, x=rows, h=h)
    if shape == (16, 1, 6):
        words = "`h` float32 [2, 1, 6] (batch axis 1), the samples along axis 1"
        assert found.exit_code == 2 and words in " ".join(found.output.split())
        return
    assert found.exit_code == 0, found.output
    one = h.reshape(16, 2, 1, 6)[0] if h.ndim == 4 else h[:, :1]
    close(tmp_path, {"x": rows[:1], "h": one})


def test_a_tree_ensemble_has_nothing_to_quantize(tmp_path):
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_ids=[0, 0], target_nodeids=[1, 2], target_treeids=[0, 0],
        target_weights=[1.0, 2.0],
    )  # fmt: skip
    sizes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in
             (("x", 4), ("y", 1))]  # fmt: skip
    graph = helper.make_graph([tree], "g", sizes[:1], sizes[1:])
    opsets = [helper.make_opsetid("ai.onnx.ml", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = ptq(proto, tmp_path, x=RNG.normal(size=(16, 4)).astype(np.float32))
    assert found.exit_code == 3 and "there is nothing to quantize" in found.output


def test_an_operand_of_unknown_type_keeps_its_reader_float(tmp_path):
    """Shape inference knows no type behind an op of another domain; a Concat has it as operand."""
    net = Net()
    x = net.input("x", "N", 3, 8, 8)
    known, first = net.conv(x, 3, 4), net.conv(x, 3, 6)
    unknown = net.add("QuickGelu", first, alpha=1.0)
    net.nodes[-1].domain = "com.microsoft"
    joined = net.add("Concat", known, unknown, axis=1)
    net.output(net.conv(joined, 10, 2, out="y"))
    proto = net.proto()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = ptq(proto, tmp_path, x=images())
    assert found.exit_code == 0, found.output
    close(tmp_path, {"x": images()[:2]})
