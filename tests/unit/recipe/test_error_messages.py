"""Every mistake in a recipe is an error that says where, what was found, what to write instead."""

from dataclasses import replace
from typing import Annotated

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.errors import RecipeError
from qtool.recipe.choice import read_choice
from qtool.recipe.loader import load_recipe, recipe_from_options
from qtool.recipe.registry import KINDS
from qtool.targets.loader import target_names

BASE = """\
model: net.onnx
calibrate:
  images: train
  method: minmax
bits:
  weights: 8
"""


@dataclass(frozen=True)
class Step:
    """A step with an option that has limits."""

    rounds: Annotated[int, Field(ge=1)] = 5


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/x.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "net.pt2").write_bytes(b"")
    monkeypatch.setitem(KINDS, "ptq", replace(KINDS["ptq"], table=lambda: {"repair": Step}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(text: str, overrides=()) -> str:
    with open("r.yaml", "w") as file:
        file.write(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


FILE_ERRORS = [
    # (recipe, the whole message or its start)
    (BASE + "bitz: 3\n", 'r.yaml:7: bitz: unknown key; did you mean "bits"? Known here: bits, cal'),
    (BASE + "zzz: 3\n", "r.yaml:7: zzz: unknown key; remove it. Known here: bits, calibrate, eval"),
    (BASE + "  wieghts: 8\n", 'r.yaml:7: bits.wieghts: unknown key; did you mean "weights"? Known'),
    (BASE + "  layers: {frist: 8}\n", 'r.yaml:7: bits.layers.frist: not a layer pattern; expected'),
    (BASE + '  layers: {"op:": 8}\n', "r.yaml:7: bits.layers.op:: not a layer pattern; expected"),
    (BASE + "  granularity: chanel\n", 'r.yaml:7: bits.granularity: found "chanel", expected '
     'tensor or channel; did you mean "channel"?'),
    (BASE.replace("weights: 8", "weights: eight"),
     'r.yaml:6: bits.weights: found "eight", expected 1 to 16 or float'),
    (BASE.replace("weights: 8", "weights: '8'"),
     'r.yaml:6: bits.weights: found "8", expected 1 to 16 or float'),
    (BASE.replace("weights: 8", "weights: true"),
     "r.yaml:6: bits.weights: found true, expected 1 to 16 or float"),
    (BASE.replace("minmax", "minmaxx"), 'r.yaml:4: calibrate.method: found "minmaxx", expected '
     'one of aciq, auto, batchnorm, cross_entropy, entropy, histogram, kth_value, mean_minmax, '
     'minmax, moving_average, mse, percentile; did you mean "minmax"?'),
    (BASE.replace("bits:", "  weights: mse\nbits:").replace("8", "4") + "  scheme: kmeans\n",
     "r.yaml:5: calibrate.weights: ranges are estimated for equal steps, found scheme: kmeans"),
    (BASE.replace("bits:", "  weights: msee\nbits:"),
     'r.yaml:5: calibrate.weights: found "msee", expected one of aciq, auto'),
    (BASE.replace("minmax", "{percentile: {q: 2}}"),
     "r.yaml:4: calibrate.method.percentile.q: found 2, expected a number up to 1"),
    (BASE.replace("minmax", "{percentile: {q: x}}"),
     'r.yaml:4: calibrate.method.percentile.q: found "x", expected a number'),
    (BASE.replace("minmax", "{percentile: {p: 1}}"), "r.yaml:4: calibrate.method.percentile.p: "
     "unknown option of percentile"),
    (BASE.replace("minmax", "{minmax: {p: 1}}"), "r.yaml:4: calibrate.method.minmax.p: unknown "
     "option of minmax (it has none)"),
    (BASE.replace("minmax", "{a: 1, b: 2}"), "r.yaml:4: calibrate.method: found {a: ..., b: ...}, "
     "expected a name, or one name with options: {name: {key: value}}"),
    (BASE.replace("minmax", "minmax\n  count: many"),
     'r.yaml:5: calibrate.count: found "many", expected a whole number'),
    (BASE.replace("minmax", "minmax\n  count: 0"),
     "r.yaml:5: calibrate.count: found 0, expected a number above 0"),
    (BASE.replace("minmax", "minmax\n  count: true"),
     "r.yaml:5: calibrate.count: found true, expected a whole number"),
    (BASE.replace("minmax", "minmax\n  preprocess: imagent"), 'r.yaml:5: calibrate.preprocess: '),
    (BASE.replace("minmax", "minmax\n  preprocess:\n    resiz: 3"), "r.yaml:6: calibrate."
     'preprocess.resiz: unknown key; did you mean "resize"? Known here: color, crop, '),
    (BASE.replace("images: train", "text: train"),
     'r.yaml:3: calibrate.text: found "train", expected keys and values: {key: value}'),
    (BASE.replace("images: train", "text: {path: t.tsv, tokenizer: v, labels: y}"),
     'r.yaml:3: calibrate.text.labels: unknown key; did you mean "label"? Known'),
    (BASE.replace("images: train", "wav: {path: train, log_mel: {hop: 0}}"),
     "r.yaml:3: calibrate.wav.log_mel.hop: found 0, expected a number above 0"),
    (BASE.replace("images: train", "wav: nowhere"),
     'r.yaml:3: calibrate.wav.path: nothing at "'),
    (BASE.replace("images: train", "python: batches"),
     'r.yaml:3: calibrate.python: found "batches", expected module:function, such as mine:batches'),
    (BASE.replace("images: train", "imagse: train"), "r.yaml:3: calibrate.imagse: unknown key"),
    (BASE.replace("images: train", "images: trian"), 'r.yaml:3: calibrate.images: nothing at "'),
    (BASE.replace("images: train", "count: 3"), "r.yaml:2: calibrate: found none; expected exact"),
    (BASE.replace("net.onnx", "nett.onnx"), 'r.yaml:1: model: nothing at "'),
    (BASE.replace("net.onnx", "train"), 'r.yaml:1: model: "'),
    (BASE.replace("net.onnx", "[a]"), "r.yaml:1: model: found a list of 1, expected a path"),
    (BASE.replace("net.onnx", "net.pth"), 'r.yaml:1: model: found "'),
    (BASE.replace("net.onnx", "{torch: 'nets:one'}"), "r.yaml:1: model: the network's inputs are "
     "missing; add `input: {input: [N, 3, 32, 32]}`"),
    (BASE.replace("net.onnx", "{torch: nets, input: {x: [N]}}"), "r.yaml:1: model.torch: found "
     '"nets", expected "module:factory", or a file that ends in .pt2 or .pt'),
    (BASE.replace("net.onnx", "{torch: 'nets:one', input: {x: [N, 0]}}"),
     "r.yaml:1: model.input.x: found 0 in a shape, expected sizes from 1, or names"),
    (BASE.replace("net.onnx", "{torch: 'nets:one', input: {x: {shape: [N], dtype: int}}}"),
     'r.yaml:1: model.input.x.dtype: found "int", expected float32, '),
    (BASE.replace("net.onnx", "{torch: 'nets:one', inputs: {x: [N]}}"),
     'r.yaml:1: model.inputs: unknown key; did you mean "input"?'),
    (BASE.replace("net.onnx", "{torch: 'nets:one', weights: w.pth, input: {x: [N]}}"),
     'r.yaml:1: model.weights: nothing at "'),
    (BASE.replace("net.onnx", "{torch: net.pt2, input: {x: [N]}}"),
     "r.yaml:1: model: a .pt2 file has its inputs; remove `input`"),
    (BASE.replace("net.onnx", "{torch: gone.pt2}"), 'r.yaml:1: model.torch: nothing at "'),
    (BASE.replace("model: net.onnx", "target: onnxruntime-cpu"),
     'r.yaml:1: the key "model" is missing; add it'),
    ("model: net.onnx\n", 'r.yaml:1: the key "calibrate" is missing; add it'),
    ("model: net.onnx\ncalibrate: 3\n", "r.yaml:2: calibrate: found 3, expected keys and values"),
    (BASE + "target: onnxruntime-gpu\n", 'r.yaml:7: target: found "onnxruntime-gpu", expected one '
     f'of {", ".join(target_names())}; did you mean "onnxruntime-cpu"?'),
    (BASE + "target: mine.yaml\n", 'r.yaml:7: target: nothing at "'),
    (BASE + "rewrite: [fold_batchnrm]\n", 'r.yaml:7: rewrite[0]: found "fold_batchnrm", expected'),
    (BASE + "rewrite: fold_batchnorm\n", 'r.yaml:7: rewrite: found "fold_batchnorm", expected a'),
    (BASE + "ptq:\n- repair\n- repare\n", 'r.yaml:9: ptq[1]: found "repare", expected one of repair'
     '; did you mean "repair"?'),
    (BASE + "ptq:\n- repair: {rounds: 0}\n", "r.yaml:8: ptq[0].repair.rounds: found 0, expected a "
     "number from 1"),
    (BASE + "ptq: {repair: {rounds: 0}}\n", "r.yaml:7: ptq[0].repair.rounds: found 0, expected a "
     "number from 1"),
    (BASE + "ptq:\n- repair: {round: 1}\n", "r.yaml:8: ptq[0].repair.round: unknown option of "
     'repair; did you mean "rounds"? (it has rounds)'),
    (BASE + "gates: {max_drop: 1}\n", "r.yaml:7: gates.max_drop: needs accuracy, but the recipe "
     "has no `evaluate`; add it"),
    (BASE + "gates: {min_speedup: fast}\n",
     'r.yaml:7: gates.min_speedup: found "fast", expected a number'),
    (BASE + "gates: {min_speedup: .nan}\n",
     "r.yaml:7: gates.min_speedup: found nan, expected a finite number"),
    (BASE + "gates: {max_dorp: 1}\n", 'r.yaml:7: gates.max_dorp: unknown key; did you mean "max_d'),
    (BASE + "evaluate: {images: train, metric: top_1}\n", 'r.yaml:7: evaluate.metric: found "top_1"'
     ", expected one of accuracy, cosine, f1, map"),
    (BASE + "output: {opset: 17}\n", "r.yaml:7: output.opset: found 17, expected a number from 21"),
    ("", "r.yaml:1: found nothing, expected keys: at least model and calibrate"),
    ("# only a comment\n", "r.yaml:1: found nothing, expected keys: at least model and calibrate"),
    ("- model\n", "r.yaml:1: found a list, expected keys: at least model and calibrate"),
    ("model\n", "r.yaml:1: found a str, expected keys: at least model and calibrate"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FILE_ERRORS)
def test_a_mistake_names_file_line_key_and_remedy(text, expected):
    assert message(text).startswith(expected)


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ("{scheme: kmeans}", "kmeans is for layers of less than 8 bits, and there are none"),
        ("{scheme: ternary, weights: 4}", "ternary weights take 2 bits; write weights: 2"),
        ("{scheme: binary, weights: 1, layers: {first: 4}}", "binary weights take 1 bit;"),
        ("{weights: 4, scheme: {ternary: {exat: true}}}", "exat"),
        ("{weights: 4, scheme: kmean}", 'did you mean "kmeans"'),
        ("{scale: power_of_too}", 'did you mean "power_of_two"'),
        ("{scale: {fixed_point: {width: 2}}}", "bits.scale.fixed_point.width"),
        ("{scale: {power_of_two: {width: 8}}}", "unknown option of power_of_two (it has none)"),
    ],
)
def test_schemes_and_scales_go_with_their_bits(bits, said):
    text = f"model: net.onnx\ncalibrate: {{images: train}}\nbits: {bits}\n"
    assert said in message(text)


LATER = [
    ("model=net.pth", 'found "'),
]


@pytest.mark.parametrize(("override", "expected"), LATER)
def test_what_a_later_version_does_is_refused_not_ignored(override, expected):
    text = message(BASE, [override])
    assert text.startswith(f"--set {override}: ")
    assert f": {expected}" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "bits.weights=x",
            '--set bits.weights=x: bits.weights: found "x", expected 1 to 16 or ',
        ),
        ("bits.wieghts=8", '--set bits.wieghts=8: bits.wieghts: unknown key; did you mean "weigh'),
        ("calibrate.images=no", '--set calibrate.images=no: calibrate.images: nothing at "'),
        ("bits.weights", "--set bits.weights: expected key=value, such as bits.weights=8"),
        ("=8", "--set =8: expected key=value, such as bits.weights=8"),
        ('a."b=8', '--set a."b=8: expected key=value, such as bits.weights=8'),
        ("bits=[1", "--set bits=[1: not valid YAML: while parsing a flow sequence"),
        ("bits=a: b: c", "--set bits=a: b: c: not valid YAML: mapping values are not allowed"),
        ("model=null", 'r.yaml:1: the key "model" is missing; add it'),
    ],
)
def test_an_override_is_named_as_it_was_typed(override, expected):
    assert message(BASE, [override]).startswith(expected)


def test_an_override_into_a_list_says_so():
    text = message(BASE + "ptq: [repair]\n", ["ptq.0=repair"])
    assert text == "--set ptq.0=repair: ptq is a list; set it whole: ptq=[...]"


def test_no_ptq_step_yet_is_said(monkeypatch):
    monkeypatch.setitem(KINDS, "ptq", replace(KINDS["ptq"], table=dict))
    text = message(BASE + "ptq: [gptq]\n")
    assert (
        text == 'r.yaml:7: ptq[0]: found "gptq", but this version has no ptq steps yet; remove it'
    )


def test_several_mistakes_are_in_one_message():
    lines = message("model: 3\ncalibrate: {images: 3}\nbits: {weights: x}\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["r.yaml:1", "r.yaml:2", "r.yaml:3"]


def test_many_mistakes_are_cut():
    lines = message("\n".join(f"key{i}: 1" for i in range(30))).splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("... and ")


def test_a_union_says_both_forms_once():
    text = message(BASE.replace("minmax", "minmax\n  preprocess: {resize: big}"))
    assert text == (
        'r.yaml:5: calibrate.preprocess.resize: found "big", '
        "expected a whole number or a list: [a, b]"
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("none.yaml", "none.yaml: cannot read the recipe (No such file or directory)"),
        ("train", "train: cannot read the recipe (Is a directory)"),
    ],
)
def test_a_recipe_that_cannot_be_read(path, expected):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(expected)


def test_a_missing_model_or_folder_of_a_run_without_recipe_names_the_option():
    with pytest.raises(RecipeError, match=r'^--model x\.onnx: model: nothing at "/.*x\.onnx"'):
        recipe_from_options("x.onnx", "train")
    with pytest.raises(RecipeError, match=r'^--data nix: nothing at "/.*nix"; expected a file'):
        recipe_from_options("net.onnx", "nix")
    with pytest.raises(RecipeError, match=r'^--data empty: "/.*empty" holds nothing; expected im'):
        recipe_from_options("net.onnx", "empty")


def test_an_option_of_a_choice_outside_of_a_recipe_is_named():
    with pytest.raises(
        RecipeError, match=r"here: percentile\.q: found 7, expected a number up to 1"
    ):
        read_choice({"percentile": {"q": 7}}, "calibrators", "here")
