"""`qtool ptq` and `qtool check` on torch models, from the command line to the report."""

import json

import numpy as np
import pytest
import torch
from torch_nets import write_nets
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.loading.pytorch.factory import build, import_factory
from qtool.user_code import isolated_imports

RECIPE = """
model: {torch: "nets:net", weights: w.pth, input: {image: [N, 3, 8, 8]}}
calibrate: {arrays: data.npz, take: {every: 2}, method: minmax}
evaluate: {arrays: data.npz, metric: top1, take: {every: 2, offset: 1}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_nets(tmp_path)
    with isolated_imports(tmp_path):
        net = build("nets:net", import_factory("nets:net", tmp_path)[0])
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    shapes = {"image": {0: torch.export.Dim("N")}}
    program = torch.export.export(net.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    x = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        np.savez(tmp_path / "data.npz", image=x, label=net(torch.from_numpy(x)).argmax(1).numpy())
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, list(words))


def test_without_trust_nothing_runs_and_nothing_is_written(folder):
    (folder / "nets.py").write_text("open('harmed', 'w')\n")
    for words in (
        ("ptq", "--recipe", "r.yaml", "--out", "o"),
        ("ptq", "--model", "net.pt2", "--data", "data.npz", "--out", "o"),
        ("check", "r.yaml"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert "runs the code it holds; read it first, then add --trust-code" in result.stderr
    assert not (folder / "o").exists()
    assert not (folder / "harmed").exists()


def test_a_factory_goes_from_the_recipe_to_the_report(folder):
    result = run("ptq", "--recipe", "r.yaml", "--trust-code", "--out", "o", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"]["path"] == "nets:net"
    assert report["accuracy"]["float"] == 100.0
    assert report["kernels"]["stray_quantize"] == [] and report["kernels"]["float"] == {}
    assert report["kernels"]["integer"]["QLinearConv"] == 3
    assert report["kernels"]["integer"]["QLinearAdd"] == 2
    assert "/layer1/layer1.0/conv1/Conv" in [layer["name"] for layer in report["layers"]]
    notes = report["stages"][0]["notes"]
    assert any("torch and ONNX agree" in note for note in notes)
    assert any('taken from "state_dict"' in note for note in notes)
    (stored,) = (folder / "o" / ".stages").glob("float-*.onnx")
    written = stored.stat().st_mtime_ns

    again = run("ptq", "--recipe", "o/recipe.yaml", "--trust-code", "--out", "o", "--json")
    assert again.exit_code == 0, again.output
    assert stored.stat().st_mtime_ns == written
    second = json.loads(again.stdout)
    assert second["output"] == report["output"] and second["model"] == report["model"]


def test_layer_patterns_reach_modules_by_their_paths(folder):
    words = ("--set", 'bits.layers={"name:*layer1.1/conv1*": float}')
    result = run("ptq", "--recipe", "r.yaml", "--trust-code", "--out", "o", "--json", *words)
    assert result.exit_code == 0, result.output
    bits = {layer["name"]: layer["weight_bits"] for layer in json.loads(result.stdout)["layers"]}
    assert bits["/layer1/layer1.0/conv1/Conv"] == 8
    assert bits["/layer1/layer1.1/conv1/Conv"] == "float"


def test_a_program_is_checked_and_quantized(folder):
    result = run("ptq", "--model", "net.pt2", "--data", "data.npz", "--trust-code", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"]["path"] == str(folder / "net.pt2")
    assert report["kernels"]["float"] == {}
    (folder / "p.yaml").write_text("model: net.pt2\ncalibrate: {arrays: data.npz}\n")
    result = run("check", "p.yaml", "--trust-code")
    assert result.exit_code == 0, result.output
    assert "/layer1/layer1.0/conv1/Conv" in result.stdout
