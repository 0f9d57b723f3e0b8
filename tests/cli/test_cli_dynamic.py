"""`activations: dynamic` through the real command: an LSTM with a product behind it."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from models import Net, run
from typer.testing import CliRunner

from qtool.cli.main import app

HIDDEN, COUNT = 64, 40


def classifier() -> Net:
    """[N, 12, 40] through an LSTM to 20 classes."""
    net = Net(21)
    bound = HIDDEN**-0.5

    def uniform(*shape: int) -> str:
        return net.const(net.rng.uniform(-bound, bound, shape))

    x = net.add("Transpose", net.input("x", "N", 12, 40), perm=[1, 0, 2])
    weights = [uniform(1, 4 * HIDDEN, size) for size in (40, HIDDEN)]
    inputs = [x, *weights, uniform(1, 8 * HIDDEN)]
    net.add("LSTM", *inputs, out=" h", name="rnn", hidden_size=HIDDEN)
    net.nodes[-1].output[:] = ["", "h"]
    x = net.add("Squeeze", "h", net.const(np.array([0])))
    head = [net.weight(HIDDEN, 64), net.weight(64)]
    x = net.add("Add", net.add("MatMul", x, head[0], name="head"), head[1])
    return net.output(net.add("MatMul", x, net.weight(64, 4), out="y", name="last"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("dynamic")
    net = classifier()
    onnx.save(net.proto(), folder / "net.onnx")
    x = np.random.default_rng(0).normal(0, 1, (2 * COUNT, 12, 40)).astype(np.float32)
    label = run(net.proto(), {"x": x})["y"].argmax(1)
    np.savez(folder / "data.npz", x=x, label=label)
    recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": "data.npz", "take": {"every": 2, "offset": 0}},
        "evaluate": {"arrays": "data.npz", "take": {"every": 2, "offset": 1}},
        "bits": {"activations": "dynamic"},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = ["ptq", "--recipe", "r.yaml", "--out", "run", "--threads", "1", "--json"]
        result = CliRunner().invoke(app, words)
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), folder


def notes(report: dict, stage: str) -> str:
    return "\n".join(next(s for s in report["stages"] if s["name"] == stage)["notes"])


def test_the_report_tells_what_ran(finished):
    report, _ = finished
    assert report["kernels"]["integer"] == {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1}
    assert report["kernels"]["stray_quantize"] == []
    assert report["accuracy"]["float"] == 100 and report["accuracy"]["quantized"] >= 95
    assert report["size"]["compression"] > 3
    parity = report["parity"]
    assert parity["max_lsb"] <= 1 and parity["share_off"] <= 1e-3
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert [layers[n]["activation_bits"] for n in ("rnn", "head")] == ["dynamic", "dynamic"]
    assert all(layers[name]["sqnr_db"] > 30 for name in ("rnn", "head"))
    assert layers["rnn"]["payload_bytes"] >= 4 * HIDDEN * (40 + HIDDEN)
    assert layers["head"]["bytes"] >= HIDDEN * 64 + 64 * 4
    assert "no calibration sample was read" in notes(report, "freeze")
    assert "2 integer sites compute the grids of their inputs" in notes(report, "annotate")
    assert "evaluated at batch 1" in notes(report, "simulate")


def test_check_prints_it(finished):
    result = CliRunner().invoke(app, ["check", str(finished[1] / "r.yaml")])
    assert result.exit_code == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "W8Adynamic" in lines["rnn"] and "LSTM: integer kernel" in lines["rnn"]
    assert "float" in lines["last"] and "with 256 weights, fewer than 1024" in lines["last"]


def test_a_finished_plan_is_used_again(finished):
    _, folder = finished
    words = ["ptq", "--recipe", str(folder / "r.yaml"), "--plan", str(folder / "run/plan.json")]
    result = CliRunner().invoke(app, [*words, "--out", str(folder / "again"), "--threads", "1"])
    assert result.exit_code == 0, result.stderr
    first, again = ((folder / name / "model.onnx").read_bytes() for name in ("run", "again"))
    assert first == again
