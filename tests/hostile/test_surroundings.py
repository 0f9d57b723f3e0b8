"""A run in poor surroundings: no network, no home, no git, TMPDIR elsewhere."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import sandbox
from models import residual

SANDBOX = [sys.executable, sandbox.__file__, sys.executable]

pytestmark = pytest.mark.skipif(not sandbox.AVAILABLE, reason="needs seccomp on x86-64")


@pytest.fixture
def surroundings(tmp_path):
    """A folder to run in, and an environment with nothing but a home and a folder for TMPDIR."""
    for name in ("home", "tmp", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "home").chmod(0o500)
    environment = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PATH": "",
        "OMP_NUM_THREADS": "1",
    }
    return tmp_path, environment


def run(words: list[str], surroundings) -> subprocess.CompletedProcess[str]:
    folder, environment = surroundings
    return subprocess.run(
        [*SANDBOX, *words], cwd=folder / "work", env=environment, capture_output=True, text=True
    )


def left_over(folder: Path) -> list[Path]:
    """What lies in the home and the folder for temporary files; but torch makes a cache there."""
    paths = [path for name in ("home", "tmp") for path in (folder / name).rglob("*")]
    return [path for path in paths if not path.name.startswith("torchinductor_")]


def test_the_sandbox_kills_what_opens_a_socket(surroundings):
    opened = run(["-c", "import socket; socket.socket()"], surroundings)
    assert opened.returncode == -signal.SIGSYS
    assert run(["-c", "import socket; socket.socket(socket.AF_UNIX)"], surroundings).returncode == 0


def test_onnxruntime_alone_would_fail_the_test(surroundings):
    """Where the installed version sends usage data: the test below can fail."""
    folder, environment = surroundings
    model = residual().proto().SerializeToString()
    (folder / "work" / "m.onnx").write_bytes(model)
    environment["ORT_DISABLE_TELEMETRY"] = "0"
    code = "import time, onnxruntime as o; o.InferenceSession('m.onnx'); time.sleep(1)"
    run(["-c", code], surroundings)
    if not left_over(folder):
        pytest.skip("this version of ONNX Runtime collects nothing")


def test_ptq_needs_neither_network_nor_home_nor_git(surroundings):
    folder, _ = surroundings
    onnx.save(residual().proto(), folder / "work" / "m.onnx")
    x = np.random.default_rng(0).normal(size=(24, 4, 8, 8)).astype(np.float32)
    np.savez(folder / "work" / "d.npz", x=x)
    words = ["-m", "qtool", "ptq", "m.onnx", "d.npz", "--out", "o", "--threads", "1", "--quiet"]
    ended = run(words, surroundings)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (folder / "work" / "o" / "report.json").is_file()
    assert left_over(folder) == []


@pytest.mark.slow
def test_qat_needs_neither_network_nor_home_nor_git(surroundings, digits):
    folder, _ = surroundings
    words = ["-m", "qtool", "qat", "--recipe", str(digits / "qat_w2a4.yaml"), "--epochs", "1"]
    ended = run([*words, "--out", "o", "--threads", "1", "--quiet"], surroundings)
    assert ended.returncode in (0, 1), ended.stderr
    assert (folder / "work" / "o" / "report.json").is_file()
    assert left_over(folder) == []
