"""Whole runs from Python: the same files and reports as the commands, the same errors."""

import html
import json
import re

import numpy as np
import onnx
import pytest
from models import Net

import qtool
from qtool.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    net = Net(opset=21)
    net.output(net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    onnx.save(net.proto(), folder / "net.onnx")
    x = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    section = {"arrays": str(folder / "data.npz")}
    return {"model": str(folder / "net.onnx"), "calibrate": section}


def test_a_run_returns_the_report_that_it_wrote(recipe, tmp_path):
    report = qtool.run_ptq(recipe, tmp_path / "run", seed=3, threads=1)
    written = json.loads((tmp_path / "run/report.json").read_text())
    assert json.loads(report.to_json()) == written and written["seed"] == 3
    verified = qtool.verify(tmp_path / "run/model.onnx", recipe=recipe, seed=3)
    assert verified.accuracy.agreement == report.accuracy.agreement
    path = tmp_path / "run/recipe.yaml"
    again = qtool.run_ptq(path, tmp_path / "again", seed=3)
    assert again.output.sha256 == report.output.sha256


def test_a_notebook_shows_the_page_in_a_frame(recipe, tmp_path):
    report = qtool.run_ptq(recipe, tmp_path / "run")
    frame = report._repr_html_()
    page = html.unescape(re.search(r'srcdoc="(.*?)"', frame, re.DOTALL)[1])
    assert page.lstrip().lower().startswith("<!doctype html") and "net.onnx" in page


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda r, p: qtool.run_ptq(r, p, seeds=1), RecipeError, 'mean "seed"'),
        (lambda r, p: qtool.run_ptq(r | {"gate": {}}, p), RecipeError, "gates"),
        (lambda r, p: qtool.run_ptq("gone.yaml", p), RecipeError, "gone.yaml"),
        (lambda r, p: qtool.run_qat(r | {"qat": {"epoch": 1}}, p), RecipeError, 'mean "epochs"'),
        (lambda r, p: qtool.verify("a.onnx", "b.onnx"), RecipeError, "`data`"),
        (
            lambda r, p: qtool.verify("a.onnx", recipe=r, fresh=True),
            RecipeError,
            "expected seed, threads, trust_code",
        ),
        (
            lambda r, p: qtool.run_ptq(r, p, baseline="gone"),
            RecipeError,
            "gone",
        ),
        (lambda r, p: qtool.run_qat(r | {"qat": None}, p, epochs=0), RecipeError, "qat.epochs"),
        (
            lambda r, p: qtool.run_ptq(r | {"calibrate": {"arrays": r["model"]}}, p),
            DataError,
            "expected a .npy or .npz",
        ),
    ],
)
def test_wrong_calls_name_what_is_wrong_and_write_nothing(recipe, tmp_path, call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
