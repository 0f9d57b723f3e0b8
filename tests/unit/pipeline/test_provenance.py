"""What a written file says of its origin, and the resolved recipe that goes with it."""

import json
import shutil

import numpy as np
import onnx
import pytest
import yaml
from models import Net
from PIL import Image
from typer.testing import CliRunner

import qtool
from qtool.cli.main import app
from qtool.pipeline.context import RunOptions
from qtool.pipeline.prepare import prepare
from qtool.pipeline.provenance import read_provenance, recipe_digest
from qtool.recipe.loader import load_recipe
from qtool.steps.stage_cache import temporary_cache
from qtool.version import __version__

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network with images of another size than its input, and arrays of another name."""
    folder = tmp_path_factory.mktemp("origin")
    net = Net(opset=21)
    net.output(net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    onnx.save(net.proto(), folder / "net.onnx")
    (folder / "images").mkdir()
    for k in range(24):
        pixels = RNG.integers(0, 256, (12, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{k}.png")
    x = RNG.normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "arrays.npz", pixels=x, y=np.zeros(24, np.int64))
    return folder


def write(folder, **sections):
    (folder / "r.yaml").write_text(yaml.safe_dump({"model": "net.onnx", **sections}))
    return folder / "r.yaml"


@pytest.fixture(scope="module")
def first(folder):
    """A run on the images, whose preprocessing is guessed."""
    recipe = write(folder, calibrate={"images": "images"}, output={"file": "small.onnx"})
    return qtool.run_ptq(recipe, folder / "first")


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_file_names_recipe_model_and_version(folder, first):
    file = folder / "first/small.onnx"
    assert first.output.path == "small.onnx" and not file.with_name("model.onnx").exists()
    digest = recipe_digest(load_recipe(folder / "first/recipe.yaml"))
    assert metadata(file) == {
        "qtool.version": __version__,
        "qtool.recipe_sha256": digest,
        "qtool.model_sha256": first.model.sha256,
    }
    verified = qtool.verify(file, recipe=folder / "first/recipe.yaml")
    assert verified.output.provenance == first.output.provenance
    shown = CliRunner().invoke(app, ["inspect", str(file), "--quiet"])
    assert first.model.sha256 in shown.stdout, shown.output
    assert "Quantized: DequantizeLinear x" in shown.stdout
    as_json = CliRunner().invoke(app, ["inspect", str(file), "--json", "--quiet"])
    assert json.loads(as_json.stdout)["provenance"]["recipe_sha256"] == digest
    assert read_provenance(metadata(folder / "net.onnx")) is None


def test_another_file_name_leaves_no_file_of_the_earlier_run(folder, first, tmp_path):
    shutil.copytree(folder / "first", tmp_path / "run", ignore=lambda *_: [".stages"])
    recipe = write(folder, calibrate={"images": "images"}, output={"file": "b.onnx"})
    qtool.run_ptq(recipe, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").glob("*.onnx")] == ["b.onnx"]
    # The name is no part of the file.
    assert (tmp_path / "run/b.onnx").read_bytes() == (folder / "first/small.onnx").read_bytes()


def test_the_digest_is_that_of_what_makes_the_file(folder, tmp_path):
    recipe = write(folder, calibrate={"arrays": "arrays.npz"}, evaluate={"arrays": "arrays.npz"})
    same = [
        load_recipe(recipe, ["gates.max_drop=3"]),
        load_recipe(recipe, ["evaluate=null"]),
        load_recipe(shutil.copytree(folder, tmp_path / "elsewhere") / "r.yaml"),
    ]
    digest = recipe_digest(load_recipe(recipe))
    assert {recipe_digest(each) for each in same} == {digest}
    for words in ("calibrate.count=9", "bits.weights=4", "calibrate.method=minmax"):
        assert recipe_digest(load_recipe(recipe, [words])) != digest, words


def test_the_resolved_recipe_holds_every_guess_and_gives_the_same_file(folder, first, tmp_path):
    resolved = yaml.safe_load((folder / "first/recipe.yaml").read_text())
    assert _guesses(first)
    assert resolved["calibrate"]["preprocess"]["resize"] == 9
    assert resolved["calibrate"]["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    again = qtool.run_ptq(folder / "first/recipe.yaml", tmp_path / "again")
    assert not _guesses(again)
    assert again.output.sha256 == first.output.sha256
    texts = [
        (place / "recipe.yaml").read_text() for place in (folder / "first", tmp_path / "again")
    ]
    assert texts[0] == texts[1]


def test_names_of_arrays_are_resolved(folder):
    recipe = load_recipe(write(folder, calibrate={"arrays": "arrays.npz"}))
    with temporary_cache() as cache:
        first = prepare(recipe, cache, RunOptions())
        again = prepare(first.recipe, cache, RunOptions())
    arrays = first.recipe.calibrate.arrays
    assert (arrays.inputs, arrays.label) == ({"x": "pixels"}, "y")
    assert again.recipe == first.recipe


def _guesses(report):
    notes = [note for stage in report.stages for note in stage.notes]
    return [note for note in notes if "guessed" in note or "taken for" in note]
