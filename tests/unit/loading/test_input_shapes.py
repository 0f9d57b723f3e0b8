"""Sizes that the recipe gives to inputs whose file leaves them open."""

import json

import numpy as np
import onnx
import pytest
from models import Net
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.errors import ModelError
from qtool.graph.queries import dims
from qtool.loading import load_model
from qtool.loading.input_shapes import set_input_shapes


def tokens(path, *shape):
    """A pointwise network over tokens of 4 numbers whose input has this shape; none: no rank."""
    net = Net(opset=17)
    x = net.input("tokens", *shape)
    if not shape:
        net.inputs[0].type.tensor_type.ClearField("shape")
    net.output(net.add("MatMul", net.add("Relu", x), net.weight(4, 3), out="y", name="mm"))
    onnx.save(net.proto(), path)
    return path


@pytest.mark.parametrize("shape", [(), ("N", "L", 4), ("N", "L", "C"), ("N", None, 4)])
def test_symbolic_sizes_are_set_and_reach_later_values(shape, tmp_path):
    path = tokens(tmp_path / "m.onnx", *shape)
    model = load_model(path).model
    note = set_input_shapes(model, {"tokens": ("N", 6, 4)}, path)
    assert note == "inputs: tokens [N, 6, 4]"
    assert dims(model.graph.inputs[0]) == ("N", 6, 4)
    assert dims(model.graph.outputs[0]) == ("N", 6, 3)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"token": ("N", 6, 4)}, 'names "token", but its inputs are tokens; did you mean "tokens"'),
        ({"tokens": ("N", 6)}, r"gives \"tokens\" the shape \[N, 6\], but it is \[N, L, 4\]"),
        ({"tokens": ("N", 6, 5)}, r"\[N, 6, 5\], but it is \[N, L, 4\] in the file"),
        ({"tokens": ("N", 6, "C")}, r"only its open dimensions can be given sizes"),
    ],
)
def test_what_the_file_says_stays(shapes, text, tmp_path):
    path = tokens(tmp_path / "m.onnx", "N", "L", 4)
    with pytest.raises(ModelError, match=text):
        set_input_shapes(load_model(path).model, shapes, path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tokens(tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(45, 6, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", tokens=x)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(
        app, ["ptq", "--data", "data.npz", "--out", "o", "--threads", "1", "--json", *words]
    )


def test_an_unknown_shape_is_an_error_whose_advice_works(folder):
    refused = run("--model", "m.onnx")
    assert refused.exit_code == 2
    line = refused.stderr.strip().splitlines()[-1].partition("model: {onnx")[2]
    assert line.endswith("m.onnx, input: {tokens: [N, 3, 224, 224]}}")
    line = "{onnx" + line.replace("[N, 3, 224, 224]", "[N, 6, 4]")
    result = run("--model", "m.onnx", "--set", f"model={line}")
    assert result.exit_code == 0, result.output
    notes = json.loads(result.stdout)["stages"][0]["notes"]
    assert "inputs: tokens [N, 6, 4]" in notes


def test_a_static_batch_stays(folder):
    result = run("--model", "m.onnx", "--set", "model={onnx: m.onnx, input: {tokens: [4, 6, 4]}}")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["latency"]["batch"] == 4
    assert report["model"]["path"].endswith("m.onnx")
