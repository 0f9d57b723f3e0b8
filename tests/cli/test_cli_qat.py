"""``qtool qat`` from the command line: what it trains, writes, remembers and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from command import qtool
from models import Net


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
    assert (
        f"epoch {training['best']} was kept" in page
        and "repair and training aim at its output" in page
    )
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
    epochs = json.loads((folder / "a" / "report.json").read_text())["data"]["training"]["epochs"]
    assert epochs[:4] == training["epochs"] and len(epochs) == 5


@pytest.mark.slow
def test_a_model_and_data_are_enough_to_train(folder):
    """The calibration part trains: `train.npz` and `test.npz` are told apart by their names."""
    (folder / "parts").mkdir()
    for name in ("train.npz", "test.npz"):
        (folder / "parts" / name).symlink_to(folder / name)
    words = [folder / "net.onnx", folder / "parts", "--bits", "3/4", "--epochs", 1]
    done = qtool("qat", *words, "--set", "ptq=[]", "--out", folder / "bare")
    assert done.returncode == 0, done.stderr
    assert "epoch 1: validation" in done.stderr  # no terminal: a line for each epoch
    report = json.loads((folder / "bare/report.json").read_text())
    training = report["data"]["training"]
    assert training["count"] + training["validation"] == 300 and training["quantizer"] == "lsq"
    assert report["data"]["evaluation"]["count"] == 100


def test_ptq_leaves_the_section_alone(folder):
    done = qtool("ptq", "--recipe", folder / "r.yaml", "--out", folder / "p")
    assert done.returncode == 0, done.stderr
    assert "training" not in json.loads((folder / "p" / "report.json").read_text())["data"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("qat.quantizer=lqs", 'did you mean "lsq"'),
        ("qat.epochs=0", "qat.epochs"),
        ("qat.lr=fast", "qat.lr"),
        ("qat.batchnorm=alive", "qat.batchnorm"),
        ("qat.arrays=nothing.npz", "nothing at"),
        ("qat.arrays=test.npz", "training samples too"),
        ("bits.weights=1", "one of the quantizers pact, dorefa"),
        ("bits={scale: power_of_two, scheme: ternary, weights: 2}", "quantizer"),
        ("qat.arrays=five.npz", "5 of 10 labels lie outside 0..3"),
        ("qat.arrays=words.npz", "one class number per sample"),
    ],
)
def test_what_it_refuses(folder, setting, said):
    words = ["qat", "--recipe", folder / "r.yaml", "--out", folder / "x", "--set", setting]
    for name, labels in (("five", np.arange(10) % 2 * 7), ("words", np.array(["a"] * 10))):
        x = np.random.default_rng(9).normal(size=(10, 1, 8, 8)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, label=labels)
    done = qtool(*words)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert said in done.stderr and not (folder / "x").exists() and done.stdout == ""


def test_it_refuses_half_a_group_and_damaged_checkpoints(folder):
    words = ["qat", "--recipe", folder / "r.yaml", "--out", folder / "w", "--epochs", 1]
    alone = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"}
    done = qtool(*words, env=alone | {"WORLD_SIZE": "2"})
    assert done.returncode == 2 and "torchrun" in done.stderr and not (folder / "w").exists()
    assert qtool(*words, env=alone).returncode == 0
    (cached,) = (folder / "w" / ".stages").glob("qat-*.pt")
    cached.write_bytes(cached.read_bytes()[:300])
    done = qtool(*words, env=alone)
    assert done.returncode == 2 and "--fresh" in done.stderr


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Two processes on a port that the system chooses."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    line += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "qtool", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=env)


def test_two_processes_write_what_one_writes(folder):
    words = ["qat", "--recipe", folder / "r.yaml", "--json", "--epochs", 2]
    one, two = qtool(*words, "--out", folder / "1"), torchrun(*words, "--out", folder / "2")
    assert two.returncode == 0, two.stderr
    pair, want = json.loads(two.stdout), json.loads(one.stdout)  # one object, of one process
    assert pair["data"]["training"]["sha256"] == want["data"]["training"]["sha256"]
    epochs = (report["data"]["training"]["epochs"] for report in (pair, want))
    for ours, theirs in zip(*epochs, strict=True):
        # The order of sums alone differs.
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-3)
        assert ours["score"] == pytest.approx(theirs["score"], abs=7)  # one of 15 samples
    assert pair["parity"]["share_off"] == 0 and "train: " in two.stderr
    files = [sorted(p.name.split("-")[0] for p in folder.glob(f"{k}/**/*")) for k in (1, 2)]
    assert files[0] == files[1] and files[1].count("model.onnx") == 1


def test_an_error_stops_all_processes(folder):
    words = ["qat", "--recipe", folder / "r.yaml", "--out", folder / "y"]
    done = torchrun(*words, "--set", "bits.weights=1", "--json")
    # torchrun itself ends with 1, and says with what its processes ended.
    assert done.returncode == 1 and not (folder / "y").exists()
    assert json.loads(done.stdout)["error"]["key"] == "bits.weights"  # of one process
    assert done.stderr.count("qtool: error:") == 1 and "one of the quantizers" in done.stderr
    assert "exitcode  : 2" in done.stderr


@pytest.mark.slow
def test_a_fixed_batch_and_changes_of_what_is_no_image(tmp_path):
    rng, net = np.random.default_rng(0), Net(opset=17)
    x = net.add("Relu", net.add("Gemm", net.input("x", 32, 16), net.weight(16, 32)))
    x = net.add("Reshape", x, net.const(np.array([32, 4, 8])))
    x = net.add("Reshape", x, net.const(np.array([32, 32])))
    net.output(net.add("Gemm", x, net.weight(32, 4), out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    for name, count in (("train", 110), ("test", 40)):
        rows = rng.normal(size=(count, 16)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=rows, label=np.arange(count) % 4)
    recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": "train.npz", "count": 64},
        "evaluate": {"arrays": "test.npz"},
        "qat": {"arrays": "train.npz", "epochs": 1, "batch": 32},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    words = ["qat", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "a"]
    done = qtool(*words)
    assert done.returncode == 0, done.stderr
    done = qtool(*words, "--set", "qat.count=20")
    assert done.returncode == 2 and "fewer than the model's fixed batch of 32" in done.stderr
    done = qtool(*words, "--set", "qat.augment={crop: 2}")
    assert done.returncode == 2 and "one input of images" in done.stderr


def test_check_shows_weights_that_float_layers_keep_as_codes(folder):
    recipe = yaml.safe_load((folder / "r.yaml").read_text())
    recipe["bits"] = {"weights": 4, "activations": "float"}
    (folder / "w4.yaml").write_text(yaml.safe_dump(recipe))
    done = qtool("check", folder / "w4.yaml")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("body ")]
    assert " W4 " in line and "one scale per channel" in line
