"""``qtool inspect``: a float model and the run of one."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import qtool
from models import Net

from qtool.errors import ModelError, RecipeError
from qtool.pipeline.inspection import inspect_model, inspect_run


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """A Conv of 3 to 4 channels on 8 x 8, a hard-swish in four operators, and a Gemm."""
    folder = tmp_path_factory.mktemp("inspect")
    made = Net(opset=17)
    x = made.conv(made.input("x", "N", 3, 8, 8), 3, 4)
    three, zero, six = (made.const(np.float32(number)) for number in (3, 0, 6))
    gate = made.add("Clip", made.add("Add", x, three), zero, six)
    x = made.add("Div", made.add("Mul", x, gate), made.const(np.float32(6)))
    x = made.add("Flatten", made.add("GlobalAveragePool", x))
    made.output(made.add("Gemm", x, made.weight(5, 4), made.weight(5), transB=1, out="y"))
    path = folder / "net.onnx"
    onnx.save(made.proto(), path)
    return path


@pytest.fixture(scope="module")
def run(net) -> Path:
    data = net.with_name("data.npz")
    np.savez(data, x=np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32))
    folder = net.with_name("run")
    done = qtool("ptq", "--model", net, "--data", data, "--out", folder, "--quiet")
    assert done.returncode == 0, done.stderr
    return folder


def test_counts_shapes_and_ranges_of_a_model(net):
    info = inspect_model(net)
    conv, gemm = info.layers
    weight = onnx.numpy_helper.to_array(onnx.load(net).graph.initializer[0])
    assert (conv.op, conv.shape, conv.macs) == ("Conv", ("N", 4, 8, 8), 8 * 8 * 4 * 3 * 3 * 3)
    assert conv.parameters in (weight.size, weight.size + 4)  # with or without a bias
    assert conv.weight_range == pytest.approx((weight.min(), weight.max()))
    assert (gemm.op, gemm.shape, gemm.macs, gemm.parameters) == ("Gemm", ("N", 5), 20, 25)
    assert info.parameters == conv.parameters + gemm.parameters + 4  # constants of the hard-swish
    assert info.operators["Conv"] == 1 and info.operators["Clip"] == 1
    assert info.patterns["compose_hard_swish"] == 1
    assert info.opset == 17  # of the file, not of the graph that is raised to the target's
    assert info.outputs == {"y": "float32 [N, 5]"}


def test_a_run_names_kernels_times_and_reasons(run):
    info = inspect_run(run)
    assert {time.op for time in info.times} >= {"QLinearConv", "QGemm"}
    assert all(time.ms >= 0 for time in info.times)
    assert sorted(info.times, key=lambda t: -t.ms) == list(info.times)
    assert [(op, bool(why)) for _, op, why in info.float_nodes if op == "HardSwish"] == [
        ("HardSwish", True)
    ]


def test_a_run_without_its_data_is_described_all_the_same(run, tmp_path):
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("data.npz", "gone.npz"))
    try:
        info = inspect_run(run)
    finally:
        recipe.write_text(text)
    assert info.times == () and "gone.npz" in info.times_missing
    assert info.report.layers


def test_the_command_prints_tables_or_json(net, run):
    shown = qtool("inspect", net)
    assert shown.returncode == 0, shown.stderr
    assert "Nx4x8x8" in shown.stdout and "compose_hard_swish x1" in shown.stdout
    assert qtool("check", net).stdout == shown.stdout
    assert json.loads(qtool("inspect", net, "--json").stdout)["layers"][0]["op"] == "Conv"
    text = qtool("inspect", run, "--quiet").stdout
    assert "QLinearConv" in text and "compute in floats" in text and "W8A8" in text
    read = json.loads(qtool("inspect", run, "--json", "--quiet").stdout)
    assert read["report"]["schema"] == 1 and read["times"]


def test_what_is_no_model_and_no_run_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        inspect_model(tmp_path / "gone.onnx")
    with pytest.raises(RecipeError, match=r"report\.json"):
        inspect_run(tmp_path)
    (tmp_path / "net.pt").write_bytes(b"code")
    done = qtool("inspect", tmp_path / "net.pt")
    assert done.returncode == 2 and "--trust-code" in done.stderr
    done = qtool("inspect", tmp_path, "--json", "--target", "cmsis-nn")
    assert done.returncode == 2
    assert "--target" in json.loads(done.stdout)["error"]["message"]
    done = qtool("check", tmp_path / "net.onnx", "--bits", "4")
    assert done.returncode == 2 and "expected qtool check MODEL DATA" in done.stderr
    done = qtool("inspect", tmp_path / "net.onnx", "--threads", "2")
    assert done.returncode == 2 and "--threads" in done.stderr
