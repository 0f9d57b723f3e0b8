"""Recipes: what loads, what it becomes, and that the resolved recipe runs again as it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtool.errors import RecipeError
from qtool.recipe.loader import load_recipe, recipe_from_options
from qtool.recipe.model import Choice, LayerBits
from qtool.recipe.registry import KINDS
from qtool.recipe.target_defaults import apply_target_defaults
from qtool.targets.loader import load_target

SMALL = "model: net.onnx\ncalibrate: {images: train}\n"
FULL = """\
model: net.onnx
target: onnxruntime-cpu
calibrate:
  images: train
  count: 64
  take: {every: 2, offset: 1}
  preprocess: {resize: 36, crop: 32, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
  method: {percentile: {q: 0.999}}
evaluate: &data
  images: test
  preprocess: imagenet
  metric: top5
bits:
  weights: 8
  activations: 8
  granularity: tensor
  layers: {first: float, "name:*/head/*": {weights: 8, activations: float}, "op:Gemm": 8}
rewrite: [fold_batchnorm]
gates: {max_drop: 1, min_compression: 3.5, min_speedup: 1.5e+0}
output: {format: qdq, opset: 21, io: float}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder that holds what the recipes name; no ptq step exists."""
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    for name in ("train", "test"):
        image(tmp_path / name)
    monkeypatch.setitem(KINDS, "ptq", replace(KINDS["ptq"], table=dict))
    return tmp_path


def image(folder: Path) -> None:
    """Make a folder that holds an image, by its name; nothing here opens it."""
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(b"")


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_small_recipe_gets_the_contract_defaults(folder):
    recipe = load_recipe(write(folder, SMALL))
    assert recipe.target == "onnxruntime-cpu"
    assert recipe.calibrate.method == Choice(name="mse")
    assert recipe.calibrate.count == 512
    assert (recipe.bits.weights, recipe.bits.activations) == (None, None)  # the target's
    resolved = apply_target_defaults(recipe, load_target(recipe.target))
    assert (resolved.bits.weights, resolved.bits.activations) == (8, 8)
    assert resolved.bits.granularity == "channel"
    assert (resolved.output.format, resolved.output.opset) == ("qdq", 21)
    assert (recipe.evaluate, recipe.rewrite, recipe.ptq) == (None, None, None)
    assert recipe.output.io == "float"


def test_a_full_recipe_keeps_every_value(folder):
    recipe = load_recipe(write(folder, FULL))
    assert recipe.calibrate.method == Choice(name="percentile", options={"q": 0.999})
    assert recipe.calibrate.take.offset == 1
    assert recipe.evaluate.metric == "top5"
    assert recipe.bits.layers == {
        "first": LayerBits(weights="float", activations="float"),
        "name:*/head/*": LayerBits(weights=8, activations="float"),
        "op:Gemm": LayerBits(weights=8, activations=8),
    }
    assert list(recipe.bits.layers) == ["first", "name:*/head/*", "op:Gemm"]
    assert recipe.rewrite == ("fold_batchnorm",)
    assert (recipe.gates.max_drop, recipe.gates.min_speedup) == (1.0, 1.5)


def test_a_layer_width_that_is_left_out_stays_open(folder):
    recipe = load_recipe(write(folder, SMALL + 'bits: {layers: {"op:Conv": {weights: float}}}'))
    assert recipe.bits.layers["op:Conv"].activations is None


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_the_dumped_recipe_loads_again_from_anywhere(folder, text):
    recipe = load_recipe(write(folder, text))
    elsewhere = folder / "runs" / "one"
    elsewhere.mkdir(parents=True)
    (elsewhere / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
    again = load_recipe(elsewhere / "recipe.yaml")
    assert again == recipe
    assert again.dump() == recipe.dump()


@pytest.mark.parametrize("name", ["yes", "1e3", "a: b", "null", "ü#x", "2020-01-01", "-", "a\\b"])
def test_awkward_file_names_survive_the_round_trip(folder, name):
    image(folder / name)
    recipe = recipe_from_options(folder / "net.onnx", folder / name)
    assert load_recipe(write(folder, recipe.dump())) == recipe


def test_paths_are_relative_to_the_recipe_not_to_the_working_folder(folder, monkeypatch):
    monkeypatch.chdir("/")
    recipe = load_recipe(write(folder, SMALL))
    assert recipe.model == folder / "net.onnx"
    assert recipe.calibrate.images == str(folder / "train")


def test_target_and_preprocess_may_be_paths(folder):
    (folder / "mine.yaml").write_text("{}")
    text = "model: net.onnx\ntarget: mine.yaml\ncalibrate: {images: train, preprocess: mine.yaml}\n"
    recipe = load_recipe(write(folder, text))
    assert recipe.target == str(folder / "mine.yaml")
    assert recipe.calibrate.preprocess == str(folder / "mine.yaml")


def test_arrays_may_be_a_path_or_a_mapping(folder):
    (folder / "a.npz").write_bytes(b"")
    short = load_recipe(write(folder, "model: net.onnx\ncalibrate: {arrays: a.npz}\n"))
    text = "model: net.onnx\ncalibrate: {arrays: {path: a.npz, inputs: {x: y}, label: z}}\n"
    long = load_recipe(write(folder, text))
    assert short.calibrate.arrays.path == long.calibrate.arrays.path == str(folder / "a.npz")
    assert long.calibrate.arrays.inputs == {"x": "y"}
    assert load_recipe(write(folder, long.dump())) == long


def test_anchors_and_merge_keys_work(folder):
    text = """\
model: net.onnx
calibrate: &c {images: train, count: 8}
evaluate: {<<: *c, images: test}
"""
    recipe = load_recipe(write(folder, text))
    assert recipe.evaluate.count == 8
    assert recipe.evaluate.images == str(folder / "test")


def test_a_windows_file_with_a_byte_order_mark_loads(folder):
    path = folder / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_recipe(path).model == folder / "net.onnx"


def test_set_wins_over_the_recipe(folder):
    overrides = [
        "calibrate.count=7",
        "calibrate.method.percentile.q=0.99",
        'bits.layers."name:a.b"=float',
        "gates={max_drop: 2}",
        "evaluate.metric=top1",
        "rewrite=null",
    ]
    recipe = load_recipe(write(folder, FULL), overrides)
    assert recipe.calibrate.count == 7
    assert recipe.calibrate.method == Choice(name="percentile", options={"q": 0.99})
    assert recipe.bits.layers["name:a.b"].weights == "float"
    assert recipe.gates.max_drop == 2
    assert recipe.gates.min_speedup is None
    assert recipe.evaluate.metric == "top1"
    assert recipe.rewrite is None


def test_set_does_not_reach_through_an_alias(folder):
    text = "model: net.onnx\ncalibrate: &c {images: train, count: 8}\nevaluate: {<<: *c}\n"
    recipe = load_recipe(write(folder, text), ["calibrate.count=3"])
    assert (recipe.calibrate.count, recipe.evaluate.count) == (3, 8)


def test_model_and_data_options_win_over_the_recipe(folder, monkeypatch):
    (folder / "other.onnx").write_bytes(b"onnx")
    monkeypatch.chdir(folder)
    recipe = load_recipe(write(folder, FULL), model="other.onnx", data="test")
    assert recipe.model == folder / "other.onnx"
    assert recipe.calibrate.images == recipe.evaluate.images == str(folder / "test")
    assert recipe.calibrate.take.model_dump() == {"every": 2, "offset": 0}
    assert recipe.evaluate.take.model_dump() == {"every": 2, "offset": 1}
    assert recipe.calibrate.count == 64  # what is not about the place of the data stays
    assert load_recipe(write(folder, SMALL), data="test").evaluate is None


def test_model_and_data_alone_give_the_default_recipe(folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = recipe_from_options("net.onnx", "train", ["calibrate.count=9"])
    assert recipe.model == folder / "net.onnx"
    assert recipe.calibrate.count == 9
    assert recipe.calibrate.take.model_dump() == {"every": 2, "offset": 0}
    assert recipe.evaluate.take.model_dump() == {"every": 2, "offset": 1}
    assert recipe.evaluate.metric is None  # top1 where there are labels


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "batches"])
def test_data_that_holds_arrays_is_read_as_arrays(folder, name):
    if name == "batches":
        (folder / name).mkdir()
        for k in range(3):
            np.savez(folder / name / f"{k}.npz", x=np.zeros((2, 3), np.float32))
    else:
        (folder / name).write_bytes(b"")
    recipe = recipe_from_options(folder / "net.onnx", folder / name)
    assert recipe.calibrate.arrays.path == str(folder / name)
    assert recipe.calibrate.images is None


def test_a_choice_builds_its_entry_with_its_options():
    built = Choice(name="percentile", options={"q": 0.99}).build(KINDS["calibrators"].table())
    assert built.q == 0.99


def test_a_loaded_recipe_makes_errors_with_its_lines(folder):
    path = write(folder, SMALL + 'bits:\n  layers:\n    "name:nothing*": float\n')
    recipe = load_recipe(path)
    error = recipe.error(("bits", "layers", "name:nothing*"), "matches no layer")
    assert str(error) == f"{path}:5: bits.layers.name:nothing*: matches no layer"


def test_a_recipe_is_frozen(folder):
    recipe = load_recipe(write(folder, SMALL))
    with pytest.raises(ValueError, match="frozen"):
        recipe.target = "x"


def test_the_shipped_recipes_load(digits):
    shipped = sorted(digits.parent.rglob("*.yaml"))
    assert shipped
    for path in shipped:
        assert load_recipe(path).model.is_file()


def test_the_readers_paths_and_the_folder_of_code_are_absolute(folder):
    (folder / "t.tsv").write_text("a\t0\n")
    (folder / "vocab.txt").write_text("[UNK]\n")
    text = """\
model: net.onnx
calibrate: {text: {path: t.tsv, tokenizer: vocab.txt, length: 3}}
evaluate: {python: "mine:batches", metric: "mine:score"}
"""
    recipe = load_recipe(write(folder, text))
    assert recipe.calibrate.text.path == str(folder / "t.tsv")
    assert recipe.calibrate.text.tokenizer == str(folder / "vocab.txt")
    assert recipe.calibrate.code is None
    assert recipe.evaluate.code == str(folder)
    assert recipe.evaluate.python.function == "mine:batches"
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "r.yaml").write_text(recipe.dump())
    assert load_recipe(elsewhere / "r.yaml") == recipe


def test_data_of_the_command_line_keeps_the_settings_of_text_and_recordings(folder):
    (folder / "t.tsv").write_text("a\t0\n")
    (folder / "vocab.txt").write_text("[UNK]\n")
    text = "model: net.onnx\ncalibrate: {text: {path: t.tsv, tokenizer: vocab.txt}}\n"
    (folder / "u.tsv").write_text("b\t1\n")
    recipe = load_recipe(write(folder, text), data=folder / "u.tsv")
    assert recipe.calibrate.text.path == str(folder / "u.tsv")
    assert recipe.calibrate.text.tokenizer == str(folder / "vocab.txt")
    text = "model: net.onnx\ncalibrate: {wav: {path: train, rate: 8000}}\n"
    for part in ("test", "train"):
        (folder / "sounds" / part).mkdir(parents=True)
        (folder / "sounds" / part / "a.wav").write_bytes(b"")
    recipe = load_recipe(write(folder, text), data=folder / "sounds")
    assert recipe.calibrate.wav.path == str(folder / "sounds/train")
    assert recipe.calibrate.wav.rate == 8000


@pytest.mark.parametrize("parts", [("train", "test"), ("calibration", "evaluation"), ("a", "val")])
def test_parts_of_the_data_that_names_tell_apart_calibrate_and_evaluate(folder, parts):
    first, second = parts
    for path in (f"{first}/cat", f"{first}/dog", f"{second}/dog"):
        image(folder / "data" / path)
    recipe = recipe_from_options(folder / "net.onnx", folder / "data")
    assert recipe.calibrate.images == str(folder / "data" / first)
    assert recipe.evaluate.images == str(folder / "data" / second)
    assert recipe.calibrate.take.every == recipe.evaluate.take.every == 1
    assert recipe.evaluate.classes == ("cat", "dog")  # the evaluation part lacks one
    (note,) = recipe.notes
    assert note.startswith(f"--data {folder / 'data'}: by the name") and second in note
    own = load_recipe(write(folder, SMALL + "qat: {classes: [x, y]}\n"), data=folder / "data")
    assert own.calibrate.images == recipe.calibrate.images
    assert (own.evaluate, own.calibrate.classes, own.notes) == (None, None, recipe.notes)


def test_a_torch_model_keeps_its_folder_when_the_resolved_recipe_moves(folder, tmp_path):
    (folder / "w.pth").write_bytes(b"")
    model = "{torch: 'nets:one', weights: w.pth, input: {x: [N, 3], y: {shape: [N], dtype: bool}}}"
    (folder / "t.yaml").write_text(f"model: {model}\ncalibrate: {{images: train}}\n")
    recipe = load_recipe(folder / "t.yaml")
    assert recipe.model.code == folder
    assert recipe.model.weights == folder / "w.pth"
    assert recipe.model.input["x"].shape == ("N", 3)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "r.yaml").write_text(recipe.dump())
    assert load_recipe(folder / "elsewhere" / "r.yaml") == recipe


def test_training_reads_the_calibration_samples_where_the_recipe_names_no_others(folder):
    text = SMALL.replace("images: train", "images: train, count: 7, preprocess: {color: gray}")
    section = load_recipe(write(folder, text + "qat: {epochs: 3}\n")).qat
    calibrate = load_recipe(write(folder, text)).calibrate
    assert (section.images, section.preprocess) == (calibrate.images, calibrate.preprocess)
    assert (section.epochs, section.count) == (3, None)  # all of them train
    (folder / "other").mkdir()
    own = load_recipe(write(folder, text + "qat: {images: other}\n")).qat
    assert own.images == str(folder / "other") and own.preprocess is None


def test_a_torch_function_as_the_model_says_what_it_needs(folder):
    for call in (
        lambda: recipe_from_options("nets:resnet", folder / "train"),
        lambda: load_recipe(write(folder, SMALL), model="nets:resnet"),
    ):
        with pytest.raises(RecipeError, match="--trust-code") as caught:
            call()
        shown = 'model: {torch: "nets:resnet", weights: FILE.safetensors, input: '
        assert shown in str(caught.value)
