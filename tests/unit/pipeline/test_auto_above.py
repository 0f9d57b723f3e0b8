"""Ranges that cost too much: `auto` is tried, and used where held-out samples confirm it."""

import json

import numpy as np
import onnx
import pytest
from models import Net

from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.recipe.loader import load_recipe, recipe_from_keywords


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network whose sum has a massive corner that the next Clip cuts off, and its data."""
    folder, rng = tmp_path_factory.mktemp("corner"), np.random.default_rng(0)
    net = Net(opset=21)
    x = net.input("x", "N", 4, 16, 16)
    total = net.add("Add", net.conv(x, 4, 4, k=1), x)
    y = net.add("Clip", net.conv(total, 4, 8, k=1), net.const(0.0), net.const(6.0))
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    scale = net.const(rng.normal(0, 10, (5, 8)))
    net.output(net.add("Gemm", y, scale, net.weight(5), transB=1, out="scores"))
    onnx.save(net.proto(), folder / "net.onnx")
    images = rng.normal(size=(128, 4, 16, 16)).astype(np.float32)
    images[:, :, 0, 0] *= 300
    np.savez(folder / "data.npz", x=images)
    return folder


def run(recipe, out) -> tuple[float, str]:
    """The distance on held-out samples before any step, and the notes on the ranges."""
    report = json.loads(run_ptq(recipe, out, RunOptions(threads=1)).to_json())
    notes = next(stage["notes"] for stage in report["stages"] if stage["name"] == "freeze")
    return report["ptq"][0]["before"], " ".join(notes)


def recipe(folder, **calibrate):
    data = {"model": "net.onnx", "calibrate": {"arrays": "data.npz", **calibrate}}
    return recipe_from_keywords({**data, "ptq": "int8"}, "test", folder, files=True)


def test_auto_replaces_ranges_that_cost_too_much(folder, tmp_path):
    plain, notes = run(recipe(folder, method="mse"), tmp_path / "plain")
    assert "auto is used" not in notes
    checked, notes = run(recipe(folder), tmp_path / "checked")
    assert "auto is used" in notes and checked < 0.5 * plain
    # The resolved recipe checks again, and writes the same file.
    again, _ = run(load_recipe(tmp_path / "checked" / "recipe.yaml"), tmp_path / "again")
    assert again == checked
    first, second = ((tmp_path / n / "model.onnx").read_bytes() for n in ("checked", "again"))
    assert first == second


def test_near_ranges_stay(folder, tmp_path):
    distance, notes = run(recipe(folder, auto_above=1e9), tmp_path / "near")
    plain, _ = run(recipe(folder, method="mse"), tmp_path / "plain")
    assert distance == plain and " is used" not in notes


def test_ranges_stay_where_auto_is_no_nearer(folder, tmp_path, monkeypatch):
    from qtool.pipeline.calibration import grids

    monkeypatch.setattr(grids, "is_nearer", lambda after, before: False)
    distance, notes = run(recipe(folder), tmp_path / "same")
    plain, _ = run(recipe(folder, method="mse"), tmp_path / "plain")
    assert distance == plain and "mse is used" in notes
