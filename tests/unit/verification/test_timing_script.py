"""The script that times files: results, failures, and what it needs."""

import ast
import sys

import numpy as np
import onnx
import pytest
from models import Net

from qtool.verification.latency import timing_script
from qtool.verification.latency.runtimes import RUNTIMES, SCRIPT, Machine, ThisMachine
from qtool.verification.latency.timing_script import LOADERS, perform, shorten, time_job


def job(folder, **changes) -> dict:
    net = Net(opset=21)
    net.output(net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4), out="y"))
    onnx.save(net.proto(), folder / "good.onnx")
    (folder / "bad.onnx").write_bytes(b"none")
    np.savez(folder / "feeds.npz", x=np.ones((2, 3, 8, 8), np.float32))
    files = {"float": str(folder / "good.onnx"), "quantized": str(folder / "bad.onnx")}
    plain = {"runtime": "onnxruntime", "threads": 1, "batch": 2, "files": files, "big": False}
    feeds = dict.fromkeys(files, str(folder / "feeds.npz"))
    return {**plain, "feeds": feeds, **changes}


@pytest.mark.parametrize("runtime", [*RUNTIMES, "CPUExecutionProvider"])
def test_a_file_that_a_runtime_cannot_load_has_a_reason(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(timing_script, "MIN_SECONDS", 0.01)
    if runtime in RUNTIMES:
        pytest.importorskip(runtime)
    result = time_job(job(tmp_path, runtime=runtime))
    assert result["ms"].keys() == {"float"} and result["ms"]["float"] > 0 and result["runs"] >= 50
    assert result["reasons"].keys() == {"quantized"} and result["reasons"]["quantized"]


def test_a_provider_that_is_replaced_by_another_is_no_result(tmp_path):
    """ONNX Runtime falls back to its CPU provider, whose time would carry another's name."""
    result = time_job(job(tmp_path, runtime="NoSuchExecutionProvider"))
    assert not result["ms"] and "NoSuchExecutionProvider" in result["reasons"]["float"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("kill -9 $$", "the process ended with signal 9"),
        ("echo no memory >&2; exit 4", "the process ended with exit code 4: no memory"),
        ("exec sleep 9", "no result within 0.3 s"),
    ],
)
def test_a_runtime_that_crashes_or_hangs_ends_only_its_own_job(line, reason, tmp_path, monkeypatch):
    (tmp_path / "python").write_text(f"#!/bin/sh\n{line}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(timing_script, "JOB_SECONDS", 0.3)
    result = perform(job(tmp_path), str(tmp_path / "job.json"))
    assert result == {"ms": {}, "runs": 0, "reasons": dict.fromkeys(("float", "quantized"), reason)}


def test_the_script_stands_alone_and_runs_on_old_pythons():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    others = modules - sys.stdlib_module_names
    assert others == {"numpy", *LOADERS} and LOADERS.keys() == RUNTIMES.keys()


def test_messages_are_one_line_without_source_lines():
    text = "Exception from src/a.cpp:1:\nException from src/b.cpp:2:\n[Pass] failed\n\nat c\n"
    assert shorten(text) == "[Pass] failed at c"
    assert len(shorten("x" * 999)) == timing_script.REASON


def test_this_machine_has_onnxruntime():
    machine = ThisMachine().probe()
    assert machine.cores >= 1 and machine.cpu
    assert machine.missing("onnxruntime") == "" == machine.missing("CPUExecutionProvider")
    assert machine.version("CPUExecutionProvider") == machine.versions["onnxruntime"]


@pytest.mark.parametrize(
    ("runtime", "versions", "message"),
    [
        (
            "openvino",
            {"onnxruntime": "1.2"},
            "openvino is not installed; python3 -m pip install op",
        ),
        ("onnxruntime", {}, "onnxruntime is not installed; python3 -m pip install onnxruntime"),
        ("XnnpackExecutionProvider", {}, "onnxruntime is not installed"),
        (
            "OpenVINOExecutionProvider",
            {"onnxruntime": "1.2"},
            "onnxruntime 1.2 has no OpenVINOExecutionProvider, only CPUExecutionProvider; "
            "python3 -m pip install onnxruntime-openvino",
        ),
        ("CpuExecutionProvider", {"onnxruntime": "1.2"}, 'did you mean "CPUExecutionProvider"'),
    ],
)
def test_a_missing_runtime_comes_with_what_to_install(runtime, versions, message):
    machine = Machine("a cpu", 2, "3.11", versions, ["CPUExecutionProvider"])
    assert message in machine.missing(runtime)
