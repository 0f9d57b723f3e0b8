"""Each place where a recipe or a file can name code: nothing of it runs without --trust-code."""

import numpy as np
import onnx
import pytest
from models import Net
from typer.testing import CliRunner

from qtool.cli.main import app

BASE = {"model": "m.onnx", "calibrate": "{arrays: d.npz}", "evaluate": "{arrays: e.npz}"}
FACTORY = '{torch: "mine:net", input: {x: [N, 3, 8, 8]}}'
# The place of the code -> keys of the recipe that name it.
DOORS = {
    "factory": {"model": FACTORY},
    "weights of a factory": {"model": FACTORY.replace("}}", "}, weights: w.pth}")},
    "torch.export file": {"model": "net.pt2"},
    "TorchScript file": {"model": "{torch: net.pt, input: {x: [N, 3, 8, 8]}}"},
    "reader": {"calibrate": '{python: "mine:batches"}'},
    "reader with options": {"calibrate": '{python: {function: "mine:batches"}}'},
    "evaluation reader": {"evaluate": '{python: "mine:batches"}'},
    "metric": {"evaluate": '{arrays: e.npz, metric: "mine:score"}'},
    "loss": {"qat": '{arrays: d.npz, loss: "mine:loss"}'},
    "training reader": {"qat": '{python: "mine:batches"}'},
}
COMMANDS = {
    "factory": ("check r.yaml", "sensitivity r.yaml --out o", "qat --recipe r.yaml --out o"),
    "loss": ("qat --recipe r.yaml --out o",),
    "training reader": ("qat --recipe r.yaml --out o",),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(3, 4), net.weight(3), transB=1, out="y"))
    onnx.save(net.proto(), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for name in ("d.npz", "e.npz"):
        x = rng.normal(size=(8, 3, 8, 8)).astype(np.float32)
        np.savez(tmp_path / name, x=x, y=rng.integers(0, 3, 8))
    (tmp_path / "mine.py").write_text("open('it ran', 'w').close()\nraise SystemExit(99)\n")
    for name in ("net.pt2", "net.pt", "w.pth"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_that_names_code_needs_consent(folder):
    for door, keys in DOORS.items():
        recipe = "".join(f"{key}: {value}\n" for key, value in (BASE | keys).items())
        (folder / "r.yaml").write_text(recipe)
        for command in COMMANDS.get(door, ("ptq --recipe r.yaml --out o",)):
            ended = CliRunner().invoke(app, command.split())
            assert ended.exit_code == 2 and "--trust-code" in ended.output, (door, ended.output)
            assert not (folder / "it ran").exists() and not (folder / "o").exists(), door


@pytest.mark.parametrize("command", ["inspect net.pt2", "init net.pt d.npz", "inspect net.pt"])
def test_a_file_that_carries_code_needs_consent(command, folder):
    ended = CliRunner().invoke(app, command.split())
    assert ended.exit_code == 2 and "--trust-code" in ended.output
