"""Timing on another machine: results, errors, and what stays there."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Net
from sshd import HOST, private_sshd

from qtool.errors import RecipeError
from qtool.verification.latency import ssh_runner
from qtool.verification.latency.runtimes import Job, ThisMachine
from qtool.verification.latency.ssh_runner import SshRunner


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def remote(server, monkeypatch):
    monkeypatch.setenv("PATH", f"{server.bin}{os.pathsep}{os.environ['PATH']}")
    yield server
    assert not list(server.temporary.iterdir())


def job(folder) -> Job:
    """Two files, one of them with external data in a folder of its own; one that is no model."""
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    net.output(net.add("Flatten", net.add("GlobalAveragePool", x), out="y"))
    onnx.save(net.proto(), folder / "a.onnx")
    place = {"save_as_external_data": True, "location": "b.data", "size_threshold": 0}
    onnx.save(net.proto(), folder / "b.onnx", **place)
    (folder / "no.onnx").write_bytes(b"none")
    np.savez(folder / "feeds.npz", x=np.ones((2, 3, 8, 8), np.float32))
    files = {
        "float": [folder / "a.onnx"],
        "quantized": [folder / "b.onnx", folder / "b.data"],
        "broken": [folder / "no.onnx"],
    }
    feeds = dict.fromkeys(files, folder / "feeds.npz")
    return Job("onnxruntime", 1, 2, files, feeds)


def test_another_machine_times_files_and_keeps_none(remote, tmp_path):
    runner = SshRunner(HOST, sys.executable)
    assert runner.name == "ssh:box"
    assert runner.probe() == ThisMachine().probe()
    (result,) = runner.perform([job(tmp_path)], tmp_path)
    assert result.runs >= 50
    assert set(result.ms) == {"float", "quantized"} and min(result.ms.values()) > 0
    assert set(result.reasons) == {"broken"} and "no.onnx" in result.reasons["broken"]


@pytest.mark.slow
def test_a_closed_connection_leaves_nothing_behind(remote, tmp_path):
    results = SshRunner(HOST, sys.executable).perform([job(tmp_path)] * 9, tmp_path)
    next(results)
    assert list(remote.temporary.iterdir())
    results.close()
    deadline = time.monotonic() + 20
    while list(remote.temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)


def fake_python(folder, line: str) -> str:
    """An interpreter that does one thing, whatever it is called with."""
    (folder / "python").write_text(f"#!/bin/sh\n{line}\n")
    (folder / "python").chmod(0o755)
    return str(folder / "python")


def test_a_machine_without_onnxruntime_says_what_to_install(remote, tmp_path):
    interpreter = Path(sys.executable).resolve()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(interpreter)
    (tmp_path / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\n")  # an empty environment
    with pytest.raises(RecipeError, match=r"no onnxruntime; run there: python3 -m pip install onn"):
        SshRunner(HOST, str(tmp_path / "bin" / "python")).probe()


@pytest.mark.parametrize(
    ("host", "python", "message"),
    [
        (HOST, "python9", r"box has no python9: .*latency\.python"),
        ("stranger", "python3", r"no connection to stranger: .*Permission denied.*known host"),
        ("nowhere.invalid", "python3", r"no connection to nowhere\.invalid: .*resolve"),
    ],
)
def test_an_unusable_machine_says_why(host, python, message, remote):
    with pytest.raises(RecipeError, match=message) as caught:
        SshRunner(host, python).probe()
    assert caught.value.key == ("latency", "runner")


def test_an_interpreter_that_fails_or_hangs_says_so(remote, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="exit code 3: no disk"):
        SshRunner(HOST, fake_python(tmp_path, "echo no disk >&2; exit 3")).probe()
    monkeypatch.setattr(ssh_runner, "PROBE_SECONDS", 0.5)
    with pytest.raises(RecipeError, match="no answer from box within"):
        SshRunner(HOST, fake_python(tmp_path, "exec sleep 5")).probe()


def test_a_machine_without_ssh_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="no ssh client; install"):
        SshRunner(HOST).probe()
