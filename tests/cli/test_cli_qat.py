"""``qtool qat`` from the command line: what it trains, writes, remembers and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from models import Net


def qtool(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "qtool", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A network whose output is the class by construction, data, and a recipe at 2 bits."""
    here = tmp_path_factory.mktemp("qat")
    rng = np.random.default_rng(0)
    net = Net(opset=17)
    x = net.input("x", "N", 1, 8, 8)
    x = net.add("Relu", net.norm(net.conv(x, 1, 16, name="stem"), 16))
    x = net.add("Relu", net.norm(net.conv(x, 16, 16, name="body"), 16))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(4, 16), net.weight(4), transB=1, out="y"))
    onnx.save(net.proto(), here / "net.onnx")
    for name, count in (("train", 300), ("test", 100)):
        labels = rng.integers(0, 4, count)
        images = rng.normal(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
        for k, label in enumerate(labels):
            images[k, 0, 2 * label : 2 * label + 2] += 2
        np.savez(here / f"{name}.npz", x=images, label=labels)
    recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": "train.npz", "count": 64},
        "evaluate": {"arrays": "test.npz"},
        "bits": {"weights": 3, "activations": 4},
        "qat": {"arrays": "train.npz", "epochs": 3, "batch": 32, "lr": 0.05},
    }
    (here / "r.yaml").write_text(yaml.safe_dump(recipe))
    return here


def test_it_trains_writes_and_remembers(folder):
    done = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "a")
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "a" / "report.json").read_text())
    assert report["command"] == "qat" and report["accuracy"]["quantized"] > 60
    training = report["data"]["training"]
    assert training["count"] + training["validation"] == 300 and training["quantizer"] == "lsq"
    assert [e["epoch"] for e in training["epochs"]] == [0, 1, 2, 3]
    page = (folder / "a" / "report.html").read_text()
    assert f"epoch {training['best']} was kept" in page and "from which training departs" in page
    assert report["parity"]["share_off"] == 0
    simulated, quantized = (report["accuracy"][k] for k in ("simulated", "quantized"))
    assert simulated == quantized
    assert {"calibrate", "qat", "freeze"} <= {s["name"] for s in report["stages"]}
    again = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "a")
    assert again.returncode == 0
    repeated = json.loads((folder / "a" / "report.json").read_text())
    assert repeated["data"] == report["data"] and repeated["output"] == report["output"]
    other = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "b")
    assert other.returncode == 0
    assert (folder / "a/model.onnx").read_bytes() == (folder / "b/model.onnx").read_bytes()
    longer = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "a", "--epochs", 4)
    assert longer.returncode == 0, longer.stderr
    found = json.loads((folder / "a" / "report.json").read_text())["data"]["training"]["epochs"]
    assert found[:4] == training["epochs"] and len(found) == 5


def test_ptq_leaves_the_section_alone(folder):
    done = qtool("ptq", "--recipe", folder / "r.yaml", "--out", folder / "p")
    assert done.returncode == 0, done.stderr
    assert "training" not in json.loads((folder / "p" / "report.json").read_text())["data"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("qat=null", "needs a qat section"),
        ("qat.quantizer=lqs", 'did you mean "lsq"'),
        ("qat.epochs=0", "qat.epochs"),
        ("qat.lr=fast", "qat.lr"),
        ("qat.batchnorm=alive", "qat.batchnorm"),
        ("qat.arrays=nothing.npz", "nothing at"),
        ("qat.arrays=test.npz", "training samples too"),
        ("bits.weights=1", "code book"),
        ("bits.scale=power_of_two", "is not free"),
    ],
)
def test_what_it_refuses(folder, setting, said):
    words = ["qat", "--recipe", folder / "r.yaml", "--out", folder / "x", "--set", setting]
    done = qtool(*words)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert said in done.stderr and not (folder / "x").exists() and done.stdout == ""
