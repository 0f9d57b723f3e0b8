"""The pruning section from the command line: what it writes, reports and refuses."""

import json

import numpy as np
import onnx
import pytest
import yaml
from models import Net
from typer.testing import CliRunner

from qtool.cli.main import app

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, 96 samples with labels, and a recipe that prunes half of the weights."""
    here = tmp_path_factory.mktemp("pruning")
    net = Net(opset=17)
    x = net.add("Relu", net.norm(net.conv(net.input("x", "N", 3, 8, 8), 3, 32, name="stem"), 32))
    x = net.add("Relu", net.norm(net.conv(x, 32, 32, name="body"), 32))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(4, 32), net.weight(4), transB=1, name="head", out="y"))
    onnx.save(net.proto(), here / "net.onnx")
    for name in ("train", "test"):
        images = RNG.normal(size=(96, 3, 8, 8)).astype(np.float32)
        np.savez(here / f"{name}.npz", x=images, label=RNG.integers(0, 4, 96))
    recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": "train.npz"},
        "evaluate": {"arrays": "test.npz"},
        "pruning": {"sparsity": 0.5},
        "qat": {"arrays": "train.npz", "epochs": 3, "batch": 32},
    }
    (here / "r.yaml").write_text(yaml.safe_dump(recipe))
    return here


def qtool(command, folder, *words):
    line = [command, "--recipe", folder / "r.yaml", *words]
    return CliRunner().invoke(app, [str(word) for word in line])


def report(folder, run):
    return json.loads((folder / run / "report.json").read_text())


def test_the_file_has_the_zeros_that_the_report_states(folder):
    done = qtool("ptq", folder, "--out", folder / "a")
    assert done.exit_code == 0, done.output
    content = report(folder, "a")
    part = content["sparsity"]
    assert part["sparsity"] >= 0.5 and part["zeros"] == sum(x["zeros"] for x in part["layers"])
    assert 0 < part["compressed_bytes"] < content["size"]["quantized_bytes"]
    assert next(row["step"] for row in content["ptq"]) == "gptq"  # the default repairs
    assert content["parity"]["share_off"] == 0
    plan = np.load(folder / "a" / "plan.npz")
    masks = {n.removeprefix("masks/"): plan[n] for n in plan.files if n.startswith("masks/")}
    assert len(masks) == 3
    for name, mask in masks.items():
        assert mask.mean() == 0.5
        codes = plan[f"codes/{name}"]
        assert not codes[~mask].any() and codes[mask].any()
    for page in ("report.md", "report.html"):
        text = (folder / "a" / page).read_text()
        assert all(w in text for w in ("weights that are 0", "after deflate", "Zeros of 3 layers"))
    assert "weights that are 0" in " ".join(done.output.split())


@pytest.mark.slow
def test_the_sparsity_grows_in_training_to_what_is_requested(folder):
    words = ["--set", "pruning={sparsity: 0.75, schedule: {gradual: 2 epochs}}"]
    done = qtool("qat", folder, "--out", folder / "q", *words)
    assert done.exit_code == 0, done.output
    content = report(folder, "q")
    training = content["data"]["training"]
    assert training["epochs"][0]["sparsity"] == 0
    assert training["best"] >= 2 and training["epochs"][-1]["sparsity"] == pytest.approx(0.75, 0.02)
    assert content["sparsity"]["sparsity"] >= 0.74
    assert content["parity"]["share_off"] == 0


@pytest.mark.slow
def test_removed_channels_make_the_file_smaller_and_the_whole_network_teaches(folder):
    words = ["--set", "pruning={channels: 50%}", "--epochs", "1"]
    words += ["--set", "qat.distill={weight: 0.5}"]
    done = qtool("qat", folder, "--out", folder / "c", *words)
    assert done.exit_code == 0, done.output
    content = report(folder, "c")
    counts = content["sparsity"]["channels"]
    assert counts["macs"] <= 0.5 * counts["float_macs"] and counts["removed"] >= 16
    assert content["model"]["macs"] == counts["float_macs"]
    assert content["parity"]["share_off"] == 0
    shapes = {
        i.name: list(i.dims) for i in onnx.load(folder / "c" / "model.onnx").graph.initializer
    }
    weights = sorted(dims[0] for dims in shapes.values() if len(dims) == 4)
    assert weights in ([16, 16], [16, 32])
    text = (folder / "c" / "report.md").read_text()
    assert "removed channels" in text
    # The float score is that of the whole network, which teaches.
    assert content["data"]["training"]["float_score"] is not None


GRADUAL = "schedule: {gradual: 2 epochs}"


@pytest.mark.parametrize(
    ("command", "pruning", "said"),
    [
        ("ptq", "{sparsity: 1.5}", "pruning.sparsity"),
        ("ptq", "{sparsity: 0}", "pruning.sparsity"),
        ("ptq", "{method: magnitude}", "exactly one of sparsity, n_m, channels"),
        ("ptq", '{sparsity: 0.5, n_m: "2:4"}', "found sparsity and n_m"),
        ("ptq", '{n_m: "4:2"}', 'expected "N:M"'),
        ("ptq", '{n_m: "3:7"}', "no layer whose number of input channels 7 divides"),
        ("ptq", "{sparsity: 0.5, layers: {'name:nothing*': 0}}", "matches no node"),
        ("ptq", "{sparsity: 0.5, layers: {somewhere: 0}}", "not a layer pattern"),
        ("ptq", '{n_m: "2:4", layers: {first: 0.5}}', "goes with sparsity alone"),
        ("ptq", "{sparsity: 0.5, layers: {'op:Conv': 0, 'op:Gemm': 0}}", "no layer with weights"),
        ("ptq", "{sparsity: 0.5, method: magnitud}", 'did you mean "magnitude"'),
        ("ptq", '{n_m: "2:4", method: {magnitude: {scope: global}}}', "across layers"),
        ("ptq", f"{{sparsity: 0.5, {GRADUAL}}}", "qtool qat"),
        ("ptq", '{n_m: "2:4", ' + GRADUAL + "}", "a sparsity alone grows"),
        ("ptq", "{sparsity: 0.5, schedule: {gradual: 5}}", "such as 5 epochs"),
        ("qat", "{sparsity: 0.5, schedule: {gradual: 9 epochs}}", "at most the 3"),
        ("ptq", "{channels: 50}", "expected a share such as"),
        ("ptq", "{channels: 99%}", "expected at most"),
        ("ptq", "{channels: 50%, method: magnitude}", "leave method out"),
        ("ptq", "{channels: 50%, layers: {first: 0.5}}", "goes with sparsity alone"),
        ("qat", f"{{sparsity: 0.5, method: obs, {GRADUAL}}}", "before training"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_key(folder, command, pruning, said):
    done = qtool(command, folder, "--out", folder / "no", "--set", f"pruning={pruning}")
    assert done.exit_code == 2, done.output
    text = " ".join(done.output.replace("│", " ").split())
    assert said in text and "pruning" in text
    assert not (folder / "no").exists()


def test_a_network_without_removable_channels_is_not_supported(folder):
    words = ["--set", "pruning={channels: 50%, layers: {'op:Conv': 0}}"]
    done = qtool("ptq", folder, "--out", folder / "no", *words)
    assert done.exit_code == 3
    assert "no channel of the network can be removed" in " ".join(done.output.split())


def test_channels_need_samples(folder):
    words = ["--set", "calibrate={synthetic: batchnorm}", "--set", "pruning={channels: 50%}"]
    done = qtool("ptq", folder, "--out", folder / "no", *words)
    assert done.exit_code == 2 and "effect on samples" in " ".join(done.output.split())


def test_binary_weights_are_refused(folder):
    done = qtool("ptq", folder, "--out", folder / "no", "--set", "bits.weights=1")
    assert done.exit_code == 2
    assert "neither of them 0" in " ".join(done.output.split())
