"""Estimates before a run against what the run writes and says."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from models import Net, conv_bn_relu
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.emitters import packing
from qtool.pipeline.context import RunOptions
from qtool.pipeline.dry_run import check
from qtool.pipeline.estimate import memory, run_time
from qtool.pipeline.estimate.run_time import Estimate
from qtool.recipe.loader import load_recipe
from qtool.report.report import Report

RECIPES = {
    "int8": {},
    "per tensor": {"bits": {"granularity": "tensor"}},
    "4 bits": {"bits": {"weights": 4}},
    "3 bits": {"bits": {"weights": 3}},
    "kmeans": {"bits": {"weights": 4, "scheme": "kmeans"}},
    "ternary": {"bits": {"weights": 2, "scheme": "ternary"}},
    "binary": {"bits": {"weights": 1}},
    "weights only": {"bits": {"weights": 4, "activations": "float", "granularity": {"block": 32}}},
    "dynamic": {"bits": {"activations": "dynamic"}},
    "qoperator": {"output": {"format": "qoperator"}},
    "qonnx": {"output": {"format": "qonnx"}},
    "codes": {"output": {"io": "quantized"}},
}


def layers():
    """Layers with weights enough that codes are packed, and a residual sum."""
    net = Net()
    x = net.add("Relu", net.norm(net.conv(net.input("x", "N", 3, 12, 12), 3, 32), 32))
    z = net.norm(net.conv(x, 32, 32), 32)
    x = net.add("Relu", net.add("Add", x, z))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    x = net.add("Relu", net.add("Gemm", x, net.weight(512, 32), net.weight(512), transB=1))
    return net.output(net.add("Gemm", x, net.weight(96, 512), net.weight(96), transB=1, out="y"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    onnx.save(layers().proto(), tmp_path / "net.onnx")
    x = np.random.default_rng(0).normal(0, 1, (32, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, **sections):
    recipe = {"model": "net.onnx", "calibrate": {"arrays": "x.npz"}, "ptq": [], **sections}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "r.yaml"


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_of_the_file_are_within_five_percent(folder, name):
    recipe = write(folder, **RECIPES[name])
    estimate = check(load_recipe(recipe), RunOptions(threads=1)).estimate
    words = ["ptq", "--recipe", str(recipe), "--out", "run", "--threads", "1", "--quiet"]
    assert CliRunner().invoke(app, words).exit_code == 0
    written = Report.read(Path("run")).size.quantized_bytes
    assert estimate.file_bytes == pytest.approx(written, rel=0.05)


def test_faults_of_the_samples_are_named_before_a_run(folder):
    few = {"arrays": "x.npz", "count": 8}
    for bits, is_named in ({}, True), ({"activations": "float"}, False):  # without calibration
        recipe = load_recipe(write(folder, calibrate=few, bits=bits))
        notes = check(recipe, RunOptions(threads=1)).notes
        assert any("with fewer than 32 the ranges depend" in note for note in notes) == is_named


def test_a_plan_that_the_format_cannot_hold_has_no_file_size(folder):
    onnx.save(conv_bn_relu().proto(), folder / "net.onnx")
    recipe = write(folder, bits={"weights": 4}, output={"format": "qoperator"})
    estimate = check(load_recipe(recipe), RunOptions(threads=1)).estimate
    assert estimate.file_bytes is None or estimate.file_bytes > 0


def test_codes_of_large_weights_are_counted_and_not_packed(folder, monkeypatch):
    net = Net()
    x = net.add("Gemm", net.input("x", "N", 1024), net.weight(4096, 1024), transB=1)
    onnx.save(net.output(x).proto(), folder / "net.onnx")
    np.savez(folder / "x.npz", x=np.ones((8, 1024), np.float32))
    monkeypatch.setattr(packing, "pack", None)
    monkeypatch.setattr(packing, "_narrow", None)
    estimate = check(load_recipe(write(folder, bits={"weights": 4})), RunOptions()).estimate
    assert estimate.file_bytes == pytest.approx(4096 * 1024 / 2, rel=0.02)


def test_a_long_run_is_announced_before_it_starts(folder, monkeypatch):
    lines = []

    def progress(stage, done, total=None, note=""):
        lines.append((stage, note))

    options = RunOptions(threads=1, progress=progress)
    from qtool.pipeline.run import run_ptq

    run_ptq(load_recipe(write(folder)), folder / "short", options)
    assert "estimate" not in [stage for stage, _ in lines]
    monkeypatch.setattr(run_time, "SHORT", 0.0)
    monkeypatch.setattr(run_time, "LONG", 0.0)
    lines.clear()
    run_ptq(load_recipe(write(folder)), folder / "long", options)
    stages = [stage for stage, _ in lines]
    assert stages.index("estimate") < stages.index("calibrate")
    note = next(note for stage, note in lines if stage == "estimate")
    assert note.startswith("about ") and " of memory, a file of " in note


def test_an_estimate_in_words():
    estimate = Estimate(130.0, 300 * 2**20, 1_234_567)
    assert estimate.describe() == "about 2 min, 300 MB of memory, a file of 1.23 MB"
    short = dataclasses.replace(estimate, seconds=6.2, file_bytes=None)
    assert short.describe() == "about 6 s, 300 MB of memory"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "100M"}, "r.yaml:3: memory: 100 MB are too few: about 430 MB for the program"),
        ({"ptq": [{"brecq": {"batch": 24}}], "memory": "452MB"}, "set batch of brecq below 24, or"),
        ({"ptq": ["gptq"], "memory": "470MB"}, "gptq in its widest layer; leave gptq out, or"),
    ],
)
def test_memory_that_cannot_suffice_is_refused_before_the_work(folder, changes, words):
    result = CliRunner().invoke(app, ["ptq", "--recipe", str(write(folder, **changes))])
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert "calibrate" not in result.stderr.splitlines()[-1] and not (folder / "runs").exists()


def test_the_batch_of_training_is_part_of_the_memory(folder, monkeypatch):
    monkeypatch.setattr(memory, "BATCH_BYTES", 1)
    halves = [{"arrays": "x.npz", "take": {"every": 2, "offset": k}} for k in (0, 1)]
    sections = {"calibrate": halves[0], "evaluate": halves[1], "qat": {"batch": 8}}
    recipe = str(write(folder, **sections))
    result = CliRunner().invoke(app, ["qat", "--recipe", recipe, "--memory", "451MB"])
    assert result.exit_code == 2 and "training on 8 samples at a time" in result.stderr
    assert "--memory 451MB" in result.stderr and "set qat.batch below 8" in result.stderr


def test_the_gradients_of_sensitivities_are_part_of_the_memory(folder, monkeypatch):
    monkeypatch.setattr(memory, "BATCH_BYTES", 1)
    recipe = str(write(folder, memory="452MB"))
    result = CliRunner().invoke(app, ["sensitivity", recipe, "--out", "costs"])
    assert result.exit_code == 2 and "gradients on 16 samples at a time" in result.stderr
    assert "r.yaml:3: memory" in result.stderr and not (folder / "costs").exists()


def test_memory_that_the_machine_lacks_is_a_warning(folder, monkeypatch):
    monkeypatch.setattr(memory, "usable_memory", lambda: 300_000_000)
    result = CliRunner().invoke(app, ["check", str(write(folder))])
    assert result.exit_code == 0
    assert "WARNING: memory may run out: 286 MB are too few" in result.stdout
