"""The preset for 8-bit weights in a whole run, also with odd inputs."""

import json

import numpy as np
import onnx
from models import Net

from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.recipe.loader import recipe_from_keywords


def run(folder, net: Net, arrays: dict, **keys) -> dict:
    onnx.save(net.proto(), folder / "net.onnx")
    np.savez(folder / "data.npz", **arrays)
    data = {"model": "net.onnx", "calibrate": {"arrays": "data.npz"}, **keys}
    recipe = recipe_from_keywords(data, "test", folder, files=True)
    return json.loads(run_ptq(recipe, folder / "run", RunOptions(threads=1)).to_json())


def whole_steps(report):
    return [row for row in report["ptq"] if "block" not in row]


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(rows, 3, 8, 8)).astype(np.float32)


def two_layers(net: Net, x: str) -> Net:
    x = net.add("Relu", net.conv(x, 3, 8))
    return net.output(net.conv(x, 8, 4, out="y"))


def test_the_preset_brings_the_file_nearer_to_the_float_network(tmp_path):
    net = Net()
    two_layers(net, net.input("x", "N", 3, 8, 8))
    report = run(tmp_path, net, {"x": images(64)}, ptq="int8")
    (row,) = whole_steps(report)
    assert row["step"] == "gptq" and row["after"] < row["before"]
    assert row["kept"] == (row["after"] < 0.75 * row["before"])
    assert report["parity"]["max_lsb"] == 0


def test_an_input_that_is_one_number_for_all_samples(tmp_path):
    net = Net()
    x, factor = net.input("x", "N", 3, 8, 8), net.input("factor")
    arrays = {"x": images(64), "factor": np.full(64, 2, np.float32)}
    report = run(tmp_path, two_layers(net, net.add("Mul", x, factor)), arrays, ptq="int8")
    assert [row["step"] for row in whole_steps(report)] == ["gptq"]
