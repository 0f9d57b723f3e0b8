"""``latency``: runtimes, settings and another machine, through the real command."""

import json
import os
import sys

import numpy as np
import onnx
import pytest
import yaml
from models import Net
from sshd import HOST, private_sshd
from typer.testing import CliRunner

from qtool.cli.main import app

COUNT = 8


def ptq(folder, **changes):
    """Run `qtool ptq` on a small network; return (exit code, report or None, messages)."""
    batch = changes.pop("N", "N")
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", batch, 3, 8, 8), 3, 4))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(3, 4), net.weight(3), transB=1, out="y"))
    onnx.save(net.proto(), folder / "net.onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2 * COUNT, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=rng.integers(0, 3, 2 * COUNT))
    data = {"path": "data.npz", "inputs": {"x": "x"}, "label": "y"}
    recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": data, "take": {"every": 2, "offset": 0}},
        "evaluate": {"arrays": data, "take": {"every": 2, "offset": 1}},
        **changes,
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    words = ["ptq", "--recipe", str(folder / "r.yaml"), "--out", str(folder / "run"), "--json"]
    result = CliRunner().invoke(app, words)
    report = json.loads(result.stdout) if result.exit_code in (0, 1) else None
    return result.exit_code, report, result.stderr


@pytest.mark.slow
def test_every_runtime_times_both_files(tmp_path):
    pytest.importorskip("openvino")
    names = ["onnxruntime", "openvino"]
    section = {"runtimes": names, "batch": 4}
    # Inputs that are codes: every runtime reads them as the file demands.
    code, report, errors = ptq(tmp_path, latency=section, output={"io": "quantized"})
    assert code == 0, errors
    latency = report["latency"]
    rows = [(row["runtime"], row["threads"], row["batch"]) for row in latency["runtimes"]]
    assert rows == [(name, 1, 4) for name in names]
    assert all(row["float_ms"] > 0 and row["quantized_ms"] > 0 for row in latency["runtimes"])
    assert [(pair["threads"], pair["batch"]) for pair in latency["fastest"]] == [(1, 4)]
    assert "machine" not in latency
    resolved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert resolved["latency"]["runtimes"] == names


@pytest.mark.slow
def test_gates_hold_on_another_machine(tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    with private_sshd(tmp_path / "server") as server:
        monkeypatch.setenv("PATH", f"{server.bin}{os.pathsep}{os.environ['PATH']}")
        section = {"runner": f"ssh:{HOST}", "python": sys.executable}
        code, report, errors = ptq(tmp_path, latency=section, gates={"max_latency_ms": 1e-6})
        assert not list(server.temporary.iterdir())
    assert code == 1, errors
    (row,) = report["latency"]["runtimes"]
    assert report["latency"]["machine"]["name"] == f"ssh:{HOST}"
    assert report["gates"][0]["value"] == row["quantized_ms"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency": {"runtimes": ["NoSuchExecutionProvider"]}}, "has no NoSuchExecutionProvider"),
        ({"latency": {"runtimes": ["openvin"]}}, 'did you mean "openvino"'),
        ({"latency": {"batch": [2, 4]}, "N": 2}, "found 4, but the model fixes its batch at 2"),
        ({"latency": {"runner": "ssh:nowhere.invalid"}}, "no connection to nowhere.invalid"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_the_run(changes, message, tmp_path):
    code, _, errors = ptq(tmp_path, **changes)
    assert code == 2 and message in errors and "r.yaml:" in errors
    assert not (tmp_path / "run" / "model.onnx").exists()
