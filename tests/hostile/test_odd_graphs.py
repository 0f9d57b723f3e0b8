"""Odd graphs through the real command: a file that loads, or exit 2 or 3 and one sentence."""

import json
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qtool.cli.main import app, main

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((4, 3)) / 2).astype(np.float32)
X = RNG.standard_normal((48, 4)).astype(np.float32)
MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"], "mm")


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def value(name, *shape, kind=TensorProto.FLOAT):
    """A typed name; no sizes: no rank either."""
    return helper.make_tensor_value_info(name, kind, list(shape) or None)


ROWS, RESULT = value("x", "N", 4), value("y")


def model(*nodes, inputs=(ROWS,), outputs=(RESULT,), constants=(), more=(), functions=()):
    """A model that multiplies x by W, unless the nodes given do something else."""
    weights = dict(constants) or {"w": W}
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()]
    graph = helper.make_graph(nodes or [MATMUL], "g", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(*extra) for extra in more)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def branch(name):
    """A body whose weights and node are called as those outside."""
    inner = helper.make_node("MatMul", ["x", "w"], ["b"], "mm")
    return helper.make_graph([inner], name, [], [value("b")], [numpy_helper.from_array(W + 1, "w")])


def shadowing():
    return model(
        node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"),
        node("If", "c", "i", then_branch=branch("one"), else_branch=branch("two")),
        MATMUL, node("Add", "y i", "z"),
        outputs=[value("z")], constants={"w": W, "zero": np.float32(0)},
    )  # fmt: skip


def choosing():
    """A number of rank 0 chooses one of two networks, and there are no layers outside."""
    rate = helper.make_tensor_value_info("rate", TensorProto.INT64, [])
    return model(
        node("Equal", "rate sixteen", "c"),
        helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch("one"),
                         else_branch=branch("two")),
        inputs=(ROWS, rate), constants={"sixteen": np.array(16)},
    )  # fmt: skip


def functions(calls="local"):
    body = [node("MatMul", "a b", "t"), node("Relu", "t", "o")]
    if calls == "itself":
        body = [helper.make_node("Block", ["a", "b"], ["o"], domain="local")]
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    block = helper.make_function("local", "Block", ["a", "b"], ["o"], body, sets)
    call = helper.make_node("Block", ["x", "w"], ["y"], "call", domain="local")
    return model(call, more=[("local", 1)], functions=[block])


def renamed(name):
    return model(
        helper.make_node("MatMul", [name, f"{name}w"], [f"{name}y"], name),
        inputs=[value(name, "N", 4)], outputs=[value(f"{name}y")], constants={f"{name}w": W},
    )  # fmt: skip


def sparse():
    found = model()
    del found.graph.initializer[:]
    places = numpy_helper.from_array(np.array([1, 5]), "places")
    values = numpy_helper.from_array(np.float32([1, 2]), "w")
    found.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3]))
    return found


def sequence(name):
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)


SPLIT = node("SplitToSequence", "y", "q", axis=1, keepdims=1)
TEXT = node("Cast", "y", "t", to=TensorProto.STRING)
MERGED = node("ConcatFromSequence", "x", "c", axis=0)
PRODUCT = node("MatMul", "c w", "y")
HARD = model(
    MATMUL, helper.make_node("Dropout", ["y", "r", "t"], ["d"], "drop"), node("Relu", "d", "z"),
    outputs=[value("z")], constants={"w": W, "r": np.float32(0.5), "t": np.array(True)},
)  # fmt: skip
NOISE = helper.make_node("RandomNormalLike", ["y"], ["n"], "noise")
LOUD = model(MATMUL, NOISE, node("Add", "y n", "z"), outputs=[value("z")])
MEAN = node("ReduceMean", "y", "z", keepdims=0)

REFUSED = {
    "no nodes": (model(outputs=[value("x", "N", 4)]), 2, "no nodes"),
    "no inputs": (
        model(node("MatMul", "a w", "y"), inputs=(), constants={"a": X[:2], "w": W}),
        3, "it has no inputs, so no data can calibrate it",
    ),
    "weights of no size": (
        model(constants={"w": np.zeros((4, 0), np.float32)}), 3, "mm: its weights are empty",
    ),
    "input of no size": (
        model(inputs=[value("x", "N", 0)], constants={"w": np.zeros((0, 3), np.float32)}),
        3, "ONNX Runtime cannot run",
    ),
    "sequence input": (model(MERGED, PRODUCT, inputs=[sequence("x")]), 3, '"x" is no tensor'),
    "text input": (
        model(inputs=[value("x", "N", kind=TensorProto.STRING)]), 3, 'the input "x" is text',
    ),
    "no rank": (model(inputs=[value("x")]), 2, "input: {x: [N, 3, 224, 224]}}"),
    "sequence output": (
        model(MATMUL, SPLIT, outputs=[sequence("q")]), 3, 'the first output, "q", is no tensor',
    ),
    "text output": (
        model(MATMUL, TEXT, outputs=[value("t", kind=TensorProto.STRING)]),
        3, '(Cast) makes text, "t"; expected numbers throughout',
    ),
    "text inside": (
        model(MATMUL, TEXT, node("Cast", "t", "z", to=1), outputs=[value("z")]), 3, "makes text",
    ),
    "text as second output": (
        model(MATMUL, TEXT, outputs=[value("y"), value("t", kind=TensorProto.STRING)]),
        3, "makes text",
    ),
    "a loop without a body": (
        model(MATMUL, node("Loop", "y", "z"), outputs=[value("z")]), 3, "ONNX Runtime cannot load",
    ),
    "training mode": (HARD, 3, 'node "drop" (Dropout) is in training mode, where it drops values'),
    "noise": (LOUD, 3, 'node "noise" (RandomNormalLike) draws random numbers, so no two runs'),
    "a limit that is NaN": (
        model(MATMUL, helper.make_node("Clip", ["y", "", "w0"], ["z"], "clip"),
              outputs=[value("z")], constants={"w": W, "w0": np.float32(np.nan)}),
        3, 'node "clip" (Clip) has the limit "w0", which is NaN',
    ),
    "constant first": (
        model(outputs=[value("w", 4, 3), value("y")]), 3, 'the first output, "w", is a constant',
    ),
    "input first": (
        model(outputs=[value("x", "N", 4), value("y")]), 3, 'the first output, "x", is an input',
    ),
    "one number": (
        model(MATMUL, MEAN, outputs=[value("z")]), 3, "is one number for the whole batch",
    ),
    "weights with NaN": (model(constants={"w": W * np.nan}), 2, "NaN or infinite"),
    "sparse weights": (sparse(), 3, 'the weights "w" are stored sparse; save them dense'),
    "a cycle": (
        model(node("Add", "x b", "a"), node("Relu", "a", "b"), node("MatMul", "b w", "y")),
        2, "its nodes form a cycle",
    ),
    "a function that calls itself": (functions("itself"), 2, "its functions cannot be inlined"),
    "an unknown domain": (
        model(MATMUL, helper.make_node("Magic", ["y"], ["z"], domain="mine"),
              outputs=[value("z")], more=[("mine", 1)]),
        3, "ONNX Runtime cannot load the model",
    ),
    "layers in branches alone": (
        model(
            node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"),
            helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch("one"),
                             else_branch=branch("two")),
            constants={"zero": np.float32(0)},
        ),
        3, "its layers are in the bodies of choice (If)",
    ),
    "only a copy": (
        model(node("Identity", "x", "y"), constants={"w": W}), 3, "there is nothing to quantize",
    ),
}  # fmt: skip
WELL = {
    "nodes in any order": model(node("Relu", "y", "z"), MATMUL, outputs=[value("z")]),
    "names used again in bodies": shadowing(),
    "functions": functions(),
    "letters of all kinds": renamed("вес/重み é☃ \n<b>&"),
    "long names": renamed("n" * 3000),
    "weights that are inputs": model(inputs=[value("x", "N", 4), value("w", 4, 3)]),
    "no names": model(node("MatMul", "x w", "h"), node("Relu", "h", "y")),
    "an input as second output": model(outputs=[value("y"), value("x", "N", 4)]),
    "a constant as second output": model(outputs=[value("y"), value("w", 4, 3)]),
    "an output twice": model(outputs=[value("y"), value("y")]),
    "a sequence as second output": model(MATMUL, SPLIT, outputs=[value("y"), sequence("q")]),
    "minus zero": model(constants={"w": np.full((4, 3), -0.0, np.float32)}),
    "denormals": model(constants={"w": np.full((4, 3), 1e-42, np.float32)}),
    "many channels": model(constants={"w": RNG.standard_normal((4, 50000)).astype(np.float32)}),
    "noise that nothing reads": model(MATMUL, NOISE),
    "an empty cache": model(
        node("Slice", "x zero zero one", "e"),
        node("Concat", "e x", "j", axis=1),
        node("MatMul", "j w", "y"),
        constants={"w": W, "zero": np.array([0]), "one": np.array([1])},
    ),
    "only boxes that NonMaxSuppression leaves": model(
        node("MatMul", "x w", "h"),
        node("Reshape", "h four", "b"),
        node("MatMul", "x v", "k"),
        node("Reshape", "k two", "s"),
        node("NonMaxSuppression", "b s most", "n"),
        node("Gather", "n columns", "i", axis=1),
        node("GatherND", "b i", "y"),
        constants={
            "w": np.tile(W, 3)[:, :8],
            "v": W[:, :2],
            "most": np.array([1]),
            "four": np.array([-1, 2, 4]),
            "two": np.array([-1, 1, 2]),
            "columns": np.array([0, 2]),
        },
    ),
    "indices of a pool": model(
        node("MatMul", "x w", "h"),
        node("Unsqueeze", "h one", "u"),
        node("MaxPool", "u", "p i", kernel_shape=[2]),
        node("Cast", "i", "f", to=1),
        node("Concat", "p f", "j", axis=1),
        node("Flatten", "j", "l"),
        node("MatMul", "l v", "y"),
        constants={"w": W, "v": W, "one": np.array([1])},
    ),
    "a dead branch": model(MATMUL, node("MatMul", "x w", "dead")),
}
FAST = [*list(WELL)[:4], "an empty cache", "only boxes that NonMaxSuppression leaves"]
FAST += ["a sequence as second output", "indices of a pool"]


def ptq(proto, folder):
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "x.npz", x=X)
    words = ["ptq", "--model", "m.onnx", "--data", "x.npz", "--out", "o", "--threads", "1"]
    return CliRunner().invoke(app, [*words, "--quiet", "--json"])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_constant_input_says_which_branch_is_quantized(tmp_path):
    (tmp_path / "m.onnx").write_bytes(choosing().SerializeToString())
    np.savez(tmp_path / "x.npz", x=X)
    recipe = "model: {onnx: m.onnx, input: {rate: {constant: %d}}}\ncalibrate: {arrays: x.npz}\n"
    (tmp_path / "r.yaml").write_text(recipe % 16)
    words = ["ptq", "--recipe", "r.yaml", "--out", "o", "--threads", "1", "--quiet", "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "choice (If) takes its then_branch in every call" in found.stdout
    graph = onnx.load(tmp_path / "o" / "model.onnx").graph
    assert [each.name for each in graph.input] == ["x", "rate"]
    assert {"QuantizeLinear", "If"} & {each.op_type for each in graph.node} == {"QuantizeLinear"}
    expected = X[:2] @ (W + 1)
    session = ort.InferenceSession(str(tmp_path / "o" / "model.onnx"))
    test = session.run(None, {"x": X[:2], "rate": np.array(16)})[0]
    assert np.abs(test - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name, tmp_path):
    proto, code, text = REFUSED[name]
    if name == "no nodes":
        del proto.graph.node[:]
    found = ptq(proto, tmp_path)
    assert found.exit_code == code, found.output
    assert text in found.stderr and "Traceback" not in found.stderr
    assert f"error: {json.loads(found.stdout)['error']['message']}" in found.stderr
    assert not (tmp_path / "o" / "model.onnx").exists()


def test_products_beyond_float32_print_nothing(tmp_path, monkeypatch, capsys):
    """Here numpy's warnings are errors, but for those that the command line keeps to itself."""
    proto = model(constants={"w": np.full((4, 3), 3e38, np.float32)})
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    np.savez(tmp_path / "x.npz", x=X)
    words = ["ptq", "m.onnx", "x.npz", "--out", "o", "--threads", "1", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["qtool", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code or 0, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in WELL]
)
def test_quantized_and_loads(name, tmp_path):
    found = ptq(WELL[name], tmp_path)
    assert found.exit_code == 0, found.output
    quantized = tmp_path / "o" / "model.onnx"
    session = ort.InferenceSession(str(quantized), providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: X[:2]})
    assert "DequantizeLinear" in {n.op_type for n in onnx.load(quantized).graph.node}
