"""A whole run with and without ``--memory``, in processes with a limit of the system."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from models import Net

# Bytes of private memory that the system gives to each process of the run.
ALLOWED = 640 << 20
SIZE, CHANNELS, SAMPLES = 128, 8, 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A network whose activations on the calibration samples take 0.35 GB between two layers."""
    folder = tmp_path_factory.mktemp("memory")
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 1, SIZE, SIZE), 1, CHANNELS, 1))
    x = net.add("Add", x, net.conv(x, CHANNELS, CHANNELS, 1, group=CHANNELS))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    w, b = net.weight(4, CHANNELS), net.weight(4)
    onnx.save(net.output(net.add("Gemm", x, w, b, transB=1)).proto(), folder / "net.onnx")
    rng = np.random.default_rng(0)
    for name, count in (("x", SAMPLES), ("test", 2)):
        x = rng.standard_normal((count, 1, SIZE, SIZE), np.float32)
        np.savez(folder / f"{name}.npz", x=x)
    recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": "x.npz", "method": "minmax"},
        "evaluate": {"arrays": "test.npz"},
        "placement": "all",
        "ptq": ["bias_correction"],
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qtool", "ptq", "--recipe", "r.yaml", "--out", "run"]
    return subprocess.run(
        [*command, "--threads", "1", "--quiet", *words],
        cwd=folder,
        text=True,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (ALLOWED, ALLOWED)),
    )


linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")


@linux
@pytest.mark.slow
def test_a_run_stays_within_its_memory(folder):
    ended = run(folder, "--memory", "560M")
    assert ended.returncode == 0, ended.stderr
    assert (folder / "run/model.onnx").is_file()


@linux
@pytest.mark.slow
def test_without_the_option_it_needs_more_and_says_so(folder):
    ended = run(folder, "--out", "other")
    assert ended.returncode == 2, ended.stderr
    assert "too little memory" in ended.stderr and "--memory 2G" in ended.stderr
    assert not (folder / "other").exists()
