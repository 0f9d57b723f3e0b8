"""Wrong preprocessing, wrong orders of labels, missed accuracies, on a net that shows each."""

import json

import numpy as np
import onnx
import pytest
import yaml
from models import Net
from PIL import Image
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.data import Preprocess, load_preprocess
from qtool.data.usual_preprocess import as_yaml, usual_preprocess, usual_resizes
from qtool.errors import DataError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.prepare import prepare
from qtool.recipe.loader import load_recipe
from qtool.steps.stage_cache import temporary_cache

COLORS = {
    "dark": (95, 100, 85),
    "gray": (122, 116, 106),  # near the mean of ImageNet, so that wrong factors show
    "light": (150, 135, 130),
    "red": (135, 110, 95),
    "teal": (105, 110, 125),
}
PER_CLASS = 24


def save_net(path, settings, colors=None, spare=0, maps=False):
    """A net that names the nearest color, for inputs preprocessed by ``settings``.

    ``maps``: its scores are maps of one pixel.
    """
    pixels = np.array(colors or [*COLORS.values()], np.float64)
    if settings.color == "bgr":
        pixels = pixels[:, ::-1]
    center = (pixels * settings.scale - settings.mean) / settings.std
    rows, bias = 2 * center, -(center**2).sum(1)
    rows, bias = np.pad(rows, ((0, spare), (0, 0))), np.pad(bias, (0, spare), constant_values=-1e9)
    net = Net()
    x = net.add("Flatten", net.add("GlobalAveragePool", net.input("x", "N", 3, 8, 8)))
    x = net.add("Gemm", x, net.const(rows), net.const(bias), transB=1, out="" if maps else "y")
    net.output(net.add("Unsqueeze", x, net.const(np.array([2, 3])), out="y") if maps else x)
    onnx.save(net.proto(), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Noisy images of five colors in class folders, and a net trained with `imagenet`."""
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(2 * PER_CLASS):
            pixels = np.clip(rng.normal(color, 12, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k:02}.png")
    save_net(tmp_path / "net.onnx", load_preprocess("imagenet"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, preprocess="cifar10", evaluate=None, **sections):
    data = {"images": "images", "preprocess": preprocess}
    recipe = {
        "model": "net.onnx",
        "calibrate": {**data, "take": {"every": 2, "offset": 0}},
        "evaluate": {**data, "take": {"every": 2, "offset": 1}, **(evaluate or {})},
        **sections,
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "r.yaml"


def prepared(recipe):
    with temporary_cache() as cache:
        return prepare(load_recipe(recipe), cache, RunOptions(threads=1))


def notes(prepared, stage):
    return [n for s in prepared.context.cache.done if s.name == stage for n in s.notes]


def ptq(folder, recipe):
    words = ["ptq", "--recipe", str(recipe), "--out", str(folder / "run"), "--threads", "1"]
    result = CliRunner().invoke(app, [*words, "--json"])
    report = json.loads(result.stdout) if result.exit_code in (0, 1) else None
    return result.exit_code, report, result.stderr


def test_right_preprocessing_leaves_nothing_to_try(folder):
    run = prepared(write(folder))
    assert run.preprocessing.current.accuracy == 100
    assert run.preprocessing.others == () and run.preprocessing.better is None
    assert notes(run, "preprocessing") == ["the float model scores 100.0 % on 120 samples"]


@pytest.mark.parametrize(
    ("wrong", "trained", "settings"),
    [
        ({"scale": 1.0}, "imagenet", "cifar10"),
        ("unit", "tf", "{scale: 0.00784313725490196, mean: 1.0}"),
        ("pixels", "caffe", "{scale: 1.0, mean: [103.939, 116.779, 123.68], color: bgr}"),
        ("cifar10", "caffe", "{scale: 1.0, mean: [103.939, 116.779, 123.68], color: bgr}"),
    ],
)
def test_the_preprocessing_of_the_training_is_named(folder, wrong, trained, settings):
    save_net(folder / "net.onnx", load_preprocess(trained), maps=wrong == "unit")
    run = prepared(write(folder, wrong))
    assert run.preprocessing.current.accuracy < 80
    assert run.preprocessing.better.accuracy == 100
    assert run.preprocessing.better.settings == settings
    (note,) = notes(run, "preprocessing")
    assert note.startswith("WARNING: the float model scores ")
    assert note.endswith(f"write `preprocess: {settings}`")


def test_a_network_of_any_size_is_compared_at_the_size_of_the_samples(folder):
    """Presets resize to sizes that the graph, fixed to the samples, does not take."""
    net = Net()
    x = net.add("Flatten", net.add("GlobalAveragePool", net.input("x", "N", 3, "H", "W")))
    net.output(net.add("Gemm", x, net.const(-np.ones((3, 5))), transB=0, out="y"))
    onnx.save(net.proto(), folder / "net.onnx")
    run = prepared(write(folder, "imagenet"))
    assert run.preprocessing.current.accuracy < 50 and run.preprocessing.better is None


def test_labels_of_an_output_without_classes_are_refused_before_the_run(folder):
    net = Net()
    x = net.add("Flatten", net.add("GlobalAveragePool", net.input("x", "N", 3, 8, 8)))
    onnx.save(net.output(net.add("Gemm", x, net.weight(3, 1), out="y")).proto(), "net.onnx")
    with pytest.raises(DataError, match=r"shape \[N, 1\]; expected \[N, classes\].*`metric`"):
        prepared(write(folder))


def test_exchanged_channels_are_named(folder):
    run = prepared(write(folder, {**load_preprocess("cifar10").model_dump(), "color": "bgr"}))
    assert run.preprocessing.better.settings == "cifar10"


def test_usual_settings_are_distinct_and_another_than_the_own():
    own = Preprocess(resize=40, crop=32)
    settings = [other for _, other in usual_preprocess(own, sizes=True)]
    assert own not in settings and len(settings) == len({as_yaml(s) for s in settings})
    assert {(s.resize, s.crop) for s in settings} >= {(40, 32), (256, 224), (342, 299)}
    gray = [other for _, other in usual_preprocess(Preprocess(color="gray"))]
    assert {s.color for s in gray} == {"gray"} and len(gray) > 2
    pixels = [other for _, other in usual_preprocess(Preprocess(dtype="uint8"))]
    assert {s.dtype for s in pixels} == {"uint8"} and {s.color for s in pixels} == {"rgb", "bgr"}


def test_accuracy_below_the_expectation_fails_a_gate(folder):
    code, report, _ = ptq(folder, write(folder, "unit", {"expect": 91.7}))
    gate = next(gate for gate in report["gates"] if gate["name"] == "expect")
    assert code == 1 and report["passed"] is False
    assert gate == {
        "name": "expect",
        "limit": 91.7,
        "value": report["accuracy"]["float"],
        "passed": False,
    }
    assert report["accuracy"]["float"] < 90.7


def test_accuracy_within_a_point_of_the_expectation_passes(folder):
    code, report, _ = ptq(folder, write(folder, evaluate={"expect": 100.9}))
    assert code == 0 and [g["passed"] for g in report["gates"]] == [True]


@pytest.mark.parametrize("metric", ["cosine", None])
def test_an_expectation_needs_labels_and_a_metric_that_reads_them(folder, metric):
    evaluate = {"expect": 90, **({"metric": metric} if metric else {})}
    if metric is None:
        for k, image in enumerate(sorted((folder / "images").glob("*/*.png"))):
            image.rename(folder / "images" / f"{k}.png")
        for place in (folder / "images").iterdir():
            if place.is_dir():
                place.rmdir()
    code, _, text = ptq(folder, write(folder, evaluate=evaluate))
    assert code == 2 and "expect: needs the float model's accuracy" in text.replace("\n", " ")


def test_exchanged_classes_are_named_and_classes_mends_them(folder):
    order = ("dark", "gray", "teal", "red", "light")
    save_net(folder / "net.onnx", load_preprocess("imagenet"), [COLORS[n] for n in order])
    _, report, _ = ptq(folder, write(folder))
    (note,) = [n for s in report["stages"] if s["name"] == "labels" for n in s["notes"]]
    assert "the classes of the model are permuted" in note
    assert "light is class 4" in note and "teal is class 2" in note
    (folder / "classes.txt").write_text("\n".join(order) + "\n")
    for classes in (list(order), "classes.txt"):
        code, report, _ = ptq(folder, write(folder, evaluate={"classes": classes, "expect": 100}))
        assert code == 0 and report["accuracy"]["float"] == 100
        assert not any(s["notes"] for s in report["stages"] if s["name"] == "labels")


def test_classes_of_evaluate_number_the_labels_of_calibrate_too(folder):
    order = ["teal", "red", "light", "dark", "gray"]
    run = prepared(write(folder, evaluate={"classes": order}))
    assert run.context.calibration.labels[0] == 3  # dark comes first in the folder


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["dark", "gray", "light", "red"], "1 class names are not in `classes` (first: teal"),
        (["dark", "gray", "light", "red", "red", "teal"], '"red" twice'),
        ([], "no name"),
    ],
)
def test_classes_that_do_not_fit_are_refused(folder, classes, words):
    code, _, text = ptq(folder, write(folder, evaluate={"classes": classes}))
    assert code == 2 and words in text


def test_fewer_folders_than_classes_are_called_out(folder):
    save_net(folder / "net.onnx", load_preprocess("imagenet"), spare=5)
    (note,) = [n for n in notes(prepared(write(folder)), "load") if n.startswith("WARNING")]
    assert "has 5 classes and the model's first output 10" in note
    assert "dark is taken for class 0 and teal for class 4" in note
    full = [*COLORS, *(f"other {k}" for k in range(5))]
    run = prepared(write(folder, evaluate={"classes": full}))
    assert not [n for n in notes(run, "load") if n.startswith("WARNING")]


@pytest.mark.parametrize(
    ("own", "sides"),
    [({"resize": 259, "crop": 227}, [256, 259, 227, [227, 227]]),
     ({"resize": 256, "crop": 224}, [256, 224, [224, 224]]),
     ({"resize": 299, "crop": 299}, [299, [299, 299]]),
     ({"resize": [32, 32]}, [])],
)  # fmt: skip
def test_usual_resizes_differ_from_the_own_one(own, sides):
    own = Preprocess.model_validate(own)
    others = [setting for _, setting in usual_resizes(own)]
    assert own not in others and [each.resize for each in others] == sides
