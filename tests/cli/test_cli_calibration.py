"""Calibration by the real command: estimators of weights, refusals, steps that search ranges."""

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

from qtool.quant.plan_io import read_plan


def ptq(folder: Path, recipe: dict, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a recipe in a folder that must not exist yet."""
    folder.mkdir()
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return qtool("ptq", "--recipe", path, "--out", folder / "run", *words)


@pytest.fixture(scope="module")
def recipe(digits) -> dict:
    data = digits / "data"
    return {
        "model": str(digits / "digits.onnx"),
        "calibrate": {"images": str(data / "train"), "count": 48},
        "evaluate": {"images": str(data / "test"), "count": 40},
        "bits": {"weights": 4},
        "ptq": [],
    }


@pytest.mark.slow
def test_weights_take_the_ranges_of_an_estimator(recipe, tmp_path):
    """min-max covers the largest weight; a low percentile does not, both files are valid."""
    plans = {}
    for name in ("minmax", {"percentile": {"q": 0.7}}):
        key = name if isinstance(name, str) else "percentile"
        calibrate = {**recipe["calibrate"], "weights": name}
        done = ptq(tmp_path / key, {**recipe, "calibrate": calibrate})
        assert done.returncode == 0, done.stderr
        plans[key] = read_plan(tmp_path / key / "run" / "plan.json")
        report = json.loads((tmp_path / key / "run" / "report.json").read_text())
        assert report["parity"]["max_lsb"] <= 1
    weights = [site.weight for site in plans["minmax"].sites.values()]
    assert weights
    for weight in filter(None, weights):
        wide, narrow = (plans[key].qparams(weight).scale for key in ("minmax", "percentile"))
        assert wide.shape == narrow.shape and np.mean(narrow / wide) < 0.95


def test_rewrites_and_steps_that_find_nothing_to_do_say_so(recipe, tmp_path):
    steps = [{"adaround": {"bits": "below_8"}}]
    changes = {"bits": {"weights": 8}, "rewrite": ["smooth"], "ptq": steps}
    done = ptq(tmp_path / "a", {**recipe, **changes})
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "a" / "run" / "report.json").read_text())
    notes = [note for stage in report["stages"] for note in stage["notes"]]
    assert "smooth applies nowhere in this model" in notes
    assert any("no block has anything to learn" in n for n in notes)


@pytest.mark.slow
def test_another_seed_calibrates_again(recipe, tmp_path):
    """The seed chooses the samples that ranges are not estimated from."""
    automatic = {**recipe, "calibrate": {**recipe["calibrate"], "method": "auto"}}
    for words in ((), ("--seed", "1", "--out", tmp_path / "0" / "run")):
        done = ptq(tmp_path / str(len(words)), automatic, *words)
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "0" / "run" / "report.json").read_text())
        (stage,) = (stage for stage in report["stages"] if stage["name"] == "calibrate")
        assert not stage.get("cached")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", "batchnorm", "calibrate.weights: the weights"),
        ("method", "cross_entropy", "no output [N, C] has a grid"),
    ],
)
def test_an_estimator_that_is_not_defined_is_exit_2(recipe, tmp_path, key, value, message):
    calibrate = {**recipe["calibrate"], key: value}
    done = ptq(tmp_path / "run", {**recipe, "calibrate": calibrate})
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "run" / "run" / "model.onnx").exists()


@pytest.mark.slow
def test_class_scores_that_are_codes_and_searched_weights(recipe, tmp_path):
    calibrate = {**recipe["calibrate"], "method": "cross_entropy"}
    more = {"calibrate": calibrate, "output": {"io": "quantized"}, "ptq": ["seqmse"]}
    done = ptq(tmp_path / "run", {**recipe, **more}, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["ptq"]
    assert row["step"] == "seqmse" and row["metrics"]["layers"] >= 2
    assert row["kept"] == (row["after"] < row["before"])


def convolutions(folder: Path, batchnorm: bool) -> Path:
    """Save a small network, its BatchNorm nodes not folded."""
    net = Net(opset=21)
    x = net.input("image", "N", 3, 16, 16)
    for inputs, outputs in ((3, 8), (8, 8)):
        x = net.conv(x, inputs, outputs)
        ones = np.ones(outputs, np.float32)
        vectors = [net.const(v) for v in (ones, 0 * ones, 0 * ones, ones)]
        x = net.add("BatchNormalization", x, *vectors) if batchnorm else x
        x = net.add("Relu", x)
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(8, 4), net.weight(4), out="y"))
    onnx.save(net.proto(), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.fixture(scope="module")
def with_batchnorm(tmp_path_factory) -> Path:
    return convolutions(tmp_path_factory.mktemp("net"), True)


def test_no_data_at_all_gives_a_working_file(with_batchnorm, tmp_path):
    recipe = {"model": str(with_batchnorm), "calibrate": {"synthetic": "batchnorm"}}
    done = ptq(tmp_path / "run", recipe)
    assert done.returncode == 0, done.stderr
    assert "WARNING: no data was read" in " ".join(done.stdout.split())
    report = json.loads((tmp_path / "run" / "run" / "report.json").read_text())
    assert "accuracy" not in report
    assert report["data"] == {
        "calibration": {**report["data"]["calibration"], "synthetic": "batchnorm"}
    }
    assert report["kernels"]["integer"]["QLinearConv"] == 2
    assert report["parity"]["max_lsb"] <= 1
    text = (tmp_path / "run" / "run" / "report.md").read_text()
    assert "No data was read" in text
    again = yaml.safe_load((tmp_path / "run" / "run" / "recipe.yaml").read_text())
    assert set(again["calibrate"]["synthetic"]) == {"ranges", "mean", "std"}
    second = ptq(tmp_path / "again", again)
    assert second.returncode == 0, second.stderr
    files = [tmp_path / name / "run" / "model.onnx" for name in ("run", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ptq": ["gptq"]}, "gptq needs samples"),
        ({"rewrite": ["smooth"]}, "smooth reads samples"),
        ({"evaluate": {"synthetic": "batchnorm"}}, "made-up samples have no labels"),
        ({"gates": {"max_drop": 1}}, "needs accuracy"),
    ],
)
def test_what_needs_data_is_refused_without(with_batchnorm, tmp_path, changes, message):
    recipe = {"model": str(with_batchnorm), "calibrate": {"synthetic": "batchnorm"}, **changes}
    done = ptq(tmp_path / "run", recipe)
    assert done.returncode == 2 and message in done.stderr


def test_a_model_without_batchnorm_is_refused(tmp_path):
    recipe = {"model": str(convolutions(tmp_path, False)), "calibrate": {"synthetic": "batchnorm"}}
    done = ptq(tmp_path / "run", recipe)
    assert done.returncode == 2 and "this model has none behind an integer layer" in done.stderr


@pytest.mark.parametrize(("activations", "evaluate"), [("float", True), ("dynamic", False)])
def test_weight_only_and_dynamic_runs_need_no_calibrate_section(
    recipe, tmp_path, activations, evaluate
):
    net = Net(opset=21)
    net.output(net.add("MatMul", net.input("x", "N", 8, 64), net.weight(64, 64), out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    model = recipe["model"] if evaluate else str(tmp_path / "net.onnx")
    words = {"model": model, "bits": {"weights": 8, "activations": activations}}
    words |= {"evaluate": recipe["evaluate"]} if evaluate else {}
    done = ptq(tmp_path / "run", words)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "run" / "report.json").read_text())
    assert "calibration" not in report["data"]
    assert ("accuracy" in report) == evaluate


def test_calibrated_runs_need_one(recipe, tmp_path):
    words = {"model": recipe["model"], "bits": {"activations": "float", "layers": {"last": 8}}}
    done = ptq(tmp_path / "some", words)
    assert done.returncode == 2 and "calibrate: needed: the activation" in done.stderr
    done = ptq(tmp_path / "all", {"model": recipe["model"]})
    assert done.returncode == 2 and 'the key "calibrate" is missing' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mse", "moving_average", "auto"])
def test_two_processes_write_the_file_of_one(recipe, tmp_path, method):
    calibrate = {**recipe["calibrate"], "count": 200, "method": method}
    steps = ["gptq", {"distillation": {"epochs": 1}}]
    words = {**recipe, "calibrate": calibrate, "ptq": steps, "bits": {"weights": 4}}
    one = ptq(tmp_path / "one", words, "--json", "--threads", "1")
    assert one.returncode == 0, one.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "qtool", "ptq"]
    torchrun += ["--recipe", str(tmp_path / "one" / "r.yaml"), "--out", str(tmp_path / "two")]
    two = subprocess.run(
        [*torchrun, "--json", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert two.returncode == 0, two.stderr
    first, second = json.loads(one.stdout), json.loads(two.stdout)  # one object, of one process
    for name in ("model.onnx", "plan.npz", "plan.json"):
        own = (tmp_path / "two" / name).read_bytes()
        assert own == (tmp_path / "one" / "run" / name).read_bytes()
    assert first["accuracy"] == second["accuracy"] and first["output"] == second["output"]
    assert two.stderr.count("calibrate: ") and "Traceback" not in two.stderr
    assert not list((tmp_path / "two").rglob("*.0.npy"))
