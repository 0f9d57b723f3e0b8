"""Calibration by the real command: estimators of weights, refusals, steps that search ranges."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from qtool.quant.plan_io import read_plan


def ptq(folder: Path, recipe: dict, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a recipe in a folder that must not exist yet."""
    folder.mkdir()
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    line = [sys.executable, "-m", "qtool", "ptq", "--recipe", path, "--out", folder / "run", *words]
    return subprocess.run([str(w) for w in line], capture_output=True, text=True, timeout=300)


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


def test_class_scores_that_are_codes_and_searched_weights(recipe, tmp_path):
    calibrate = {**recipe["calibrate"], "method": "cross_entropy"}
    more = {"calibrate": calibrate, "output": {"io": "quantized"}, "ptq": ["seqmse"]}
    done = ptq(tmp_path / "run", {**recipe, **more}, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["ptq"]
    assert row["step"] == "seqmse" and row["metrics"]["layers"] >= 2
    assert row["kept"] == (row["after"] < row["before"])
