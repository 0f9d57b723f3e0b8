"""``qtool verify``: any quantized file is evaluated as the tool's own."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from command import qtool


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory) -> Path:
    """The run folder of `qtool ptq` with the defaults."""
    folder = tmp_path_factory.mktemp("made") / "run"
    done = qtool("ptq", "--model", digits / "digits.onnx", "--data", digits / "data/test",
                 "--out", folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def both(digits) -> tuple[object, ...]:
    return ("--against", digits / "digits.onnx", "--data", digits / "data/test")


def test_its_own_file_is_evaluated_as_in_the_run(made, both, tmp_path):
    done = qtool("verify", made / "model.onnx", *both, "--json", "--out", tmp_path / "verified")
    assert done.returncode == 0, done.stderr
    report, run = json.loads(done.stdout), json.loads((made / "report.json").read_text())
    assert report["command"] == "verify"
    assert not {"parity", "layers"} & {k for k, v in report.items() if v}
    assert "calibration" not in report["data"]
    assert report["data"]["evaluation"] == run["data"]["evaluation"]
    for key in ("float", "quantized", "drop", "drop_ci95", "agreement", "samples"):
        assert report["accuracy"][key] == run["accuracy"][key]
    assert "simulated" not in report["accuracy"]
    for key in ("float_bytes", "quantized_bytes", "compression"):
        assert report["size"][key] == run["size"][key]
    assert report["output"]["sha256"] == run["output"]["sha256"]
    assert report["model"] == run["model"]
    assert report["kernels"]["integer"] == run["kernels"]["integer"]
    assert report["kernels"]["stray_quantize"] == []
    assert report["latency"]["quantized_ms"] > 0
    names = {"report.json", "report.html", "report.md"}
    assert {p.name for p in (tmp_path / "verified").iterdir()} == names
    shown = qtool("report", tmp_path / "verified", made)
    assert shown.returncode == 0, shown.stderr


def test_a_gate_that_fails_is_exit_1(made, both):
    done = qtool("verify", made / "model.onnx", *both, "--set", "gates.min_compression=99")
    assert done.returncode == 1
    assert "min_compression" in done.stdout


def test_a_float_file_loses_and_gains_nothing(digits, both):
    done = qtool("verify", digits / "digits.onnx", *both, "--json")
    report = json.loads(done.stdout)
    assert (report["accuracy"]["drop"], report["size"]["compression"]) == (0, 1)
    assert report["kernels"]["integer"] == {}


def test_what_cannot_be_evaluated_is_refused(made, both, digits, tmp_path):
    shutil.copy(made / "model.onnx", tmp_path / "other.onnx")
    model = onnx.load(tmp_path / "other.onnx")
    name = model.graph.input[0].name
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if v == name else v for v in node.input]
    onnx.save(model, tmp_path / "other.onnx")
    done = qtool("verify", tmp_path / "other.onnx", *both)
    assert done.returncode == 3 and 'found the input "pixels"' in done.stderr
    done = qtool("verify", tmp_path / "gone.onnx", *both, "--out", tmp_path / "out")
    assert done.returncode == 2 and "no such file" in done.stderr
    assert not (tmp_path / "out").exists()
    done = qtool("verify", made / "model.onnx", "--against", digits / "digits.onnx")
    assert done.returncode == 2 and "expected --against FLOAT and --data DIR" in done.stderr
