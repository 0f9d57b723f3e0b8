"""Users' mistakes through the real command: exit code, place and remedy, and nothing written."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from models import Net
from PIL import Image

from qtool.cli.main import main
from qtool.report.report import Report


def images(folder: Path, classes: int = 3, each: int = 4, size: int = 8, seed: int = 0) -> Path:
    """Class folders of small random PNG files."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for k in range(each):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{k}.png")
    return folder


def classifier(path: Path, batch: int | str = "N", classes: int = 3) -> Path:
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", batch, 3, 8, 8), 3, 4, name="conv"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    w, b = net.weight(classes, 4), net.weight(classes)
    net.output(net.add("Gemm", x, w, b, transB=1, out="y", name="head"))
    onnx.save(net.proto(), path)
    return path


class Case:
    """A folder with a model, data and a recipe that works, to be spoiled by a test."""

    def __init__(self, folder: Path, monkeypatch, capsys) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        classifier(folder / "net.onnx")
        images(folder / "train")
        images(folder / "test", seed=1)
        self.recipe = {
            "model": "net.onnx",
            "calibrate": {"images": "train", "preprocess": {"mean": 0.5, "std": 0.5}},
            "evaluate": {"images": "test"},
        }

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of ``qtool ptq``."""
        (self.folder / "r.yaml").write_text(yaml.safe_dump(self.recipe, sort_keys=False))
        line = ["qtool", "ptq", "--recipe", "r.yaml", "--out", "out", "--quiet", *words]
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *self.capsys.readouterr()

    def refused(self, *words: str, code: int = 2) -> str:
        """The message; nothing may be on stdout or on disk."""
        before = sorted(self.folder.rglob("*"))
        found, out, text = self.run(*words)
        assert (found, out) == (code, "")
        assert text.startswith("qtool: error: ") and "Traceback" not in text
        assert set(self.folder.rglob("*")) - {*before, self.folder / "r.yaml"} == set()
        return text


@pytest.fixture
def case(tmp_path, monkeypatch, capsys) -> Case:
    return Case(tmp_path, monkeypatch, capsys)


def test_unspoiled_the_recipe_runs(case):
    code, out, errors = case.run()
    assert (code, errors) == (0, "")
    assert "qtool ptq" in out and (case.folder / "out/model.onnx").is_file()


def test_a_wrong_key(case):
    case.recipe["calibrate"]["imags"] = "train"
    text = case.refused()
    assert (
        "r.yaml:" in text
        and "calibrate.imags: unknown key" in text
        and 'did you mean "images"?' in text
    )


def test_a_wrong_type(case):
    case.recipe["calibrate"]["count"] = "many"
    text = case.refused()
    assert "r.yaml:" in text and "calibrate.count" in text and '"many"' in text
    assert "expected" in text


def test_a_missing_model(case):
    (case.folder / "net.onnx").unlink()
    text = case.refused()
    assert "r.yaml:1" in text and "net.onnx" in text and "no" in text


def test_a_missing_image_folder(case):
    case.recipe["evaluate"]["images"] = "tset"
    text = case.refused()
    assert "r.yaml:" in text and "evaluate.images" in text and "tset" in text


def test_an_empty_folder(case):
    (case.folder / "empty").mkdir()
    case.recipe["calibrate"]["images"] = "empty"
    text = case.refused()
    assert "empty" in text and "image" in text


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_a_broken_evaluation_image(case):
    cut(case.folder / "test/1/2.png")
    text = case.refused()
    assert "test/1/2.png" in text and "remove or replace it" in text


def test_a_few_broken_calibration_images_are_left_out(case):
    cut(case.folder / "train/1/2.png")
    (case.folder / "train/README.md").write_text("x")
    code, out, _ = case.run("--json")
    report = json.loads(out)
    notes = [note for stage in report["stages"] for note in stage["notes"]]
    assert code == 0 and report["data"]["calibration"]["count"] == 11
    share = "1 of 12 calibration samples are damaged or hold NaN or Inf and are left out"
    assert f"WARNING: {share}: 1/2.png; repair or remove them" in notes
    assert any(note.endswith("left out: README.md") for note in notes)
    cut(case.folder / "train/2/0.png")
    text = case.refused()
    assert "2 of 12 calibration samples" in text and "expected at most 10%" in text
    assert "train/1/2.png: the image cannot be read" in text


def test_an_image_of_another_size(case):
    for seed, part in enumerate(("train", "test")):
        images(case.folder / part, size=9, seed=seed)
    text = case.refused()
    assert "[3, 9, 9]" in text and "`x`" in text and "[N, 3, 8, 8]" in text
    assert "resize" in text or "crop" in text


def test_an_array_of_another_shape(case):
    np.savez(case.folder / "d.npz", x=np.zeros((6, 3, 9, 9), np.float32))
    case.recipe["calibrate"] = {"arrays": "d.npz"}
    del case.recipe["evaluate"]
    text = case.refused()
    assert "d.npz" in text and "[6, 3, 9, 9]" in text and "[N, 3, 8, 8]" in text


def test_a_pattern_that_matches_nothing(case):
    case.recipe["bits"] = {"layers": {"name:haed": "float"}}
    text = case.refused()
    assert "r.yaml:" in text and 'the pattern "name:haed" matches no node' in text
    assert 'did you mean "head"?' in text and "qtool check" in text
    assert text.count("bits.layers") == 1


def test_labels_that_do_not_fit_the_output(case):
    images(case.folder / "test", classes=5, seed=1)
    # Before anything else is done: reaching the bits would be exit 70.
    case.monkeypatch.setattr("qtool.pipeline.prepare.resolve_bits", lambda *given: 1 / 0)
    text = case.refused()
    assert "label" in text and "4" in text and "3" in text


def arrays(case: Case, **rest: np.ndarray) -> None:
    data = np.random.default_rng(0).normal(0, 1, (16, 3, 8, 8)).astype(np.float32)
    np.savez(case.folder / "d.npz", **{"x": data, **rest})
    case.recipe["calibrate"] = {"arrays": "d.npz", "take": {"every": 2}}
    case.recipe["evaluate"] = {"arrays": "d.npz", "take": {"every": 2, "offset": 1}}


def test_no_labels_for_a_metric(case):
    arrays(case)
    case.recipe["gates"] = {"max_drop": 1}
    text = case.refused()
    assert "label" in text and "max_drop" in text


def arrays_with_nan(case: Case, samples: int | slice) -> None:
    data = np.random.default_rng(0).normal(0, 1, (16, 3, 8, 8)).astype(np.float32)
    data[samples, 1, 2, 3] = np.nan
    arrays(case, x=data, y=np.zeros(16, np.int64))


def test_a_nan_in_an_array(case):
    arrays_with_nan(case, 4)
    code, out, _ = case.run("--json")
    report = json.loads(out)
    assert code == 0
    (warning,) = [n for s in report["stages"] for n in s["notes"] if "NaN" in n]
    assert warning.startswith("WARNING: 1 of 8 calibration samples are damaged or hold NaN or Inf")
    assert "d.npz[4]" in warning
    assert report["data"]["calibration"]["count"] == 7


def test_a_nan_in_every_calibration_sample(case):
    arrays_with_nan(case, slice(None, None, 2))
    text = case.refused()
    assert "d.npz[14]" in text and "NaN" in text


def test_a_nan_in_an_evaluation_sample(case):
    arrays_with_nan(case, 5)
    text = case.refused()
    assert "d.npz[5]" in text and "NaN" in text


@pytest.mark.parametrize(("dims", "what"), [([4, 3, 3, 3], "weights"), ([4], "bias")])
def test_a_parameter_that_is_not_finite(case, dims, what):
    """The parameter is named, not the values that it spoils on the way."""
    model = onnx.load(case.folder / "net.onnx")
    tensor = next(t for t in model.graph.initializer if list(t.dims) == dims)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] = np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, case.folder / "net.onnx")
    text = case.refused()
    assert f'the {what} "{tensor.name}' in text and 'of node "conv"' in text
    assert "export the model again" in text


def test_nothing_to_quantize(case):
    net = Net(opset=21)
    x = net.add("Relu", net.input("x", "N", 3, 8, 8))
    net.output(net.add("ReduceMean", x, net.const(np.array([2, 3])), keepdims=0, out="y"))
    onnx.save(net.proto(), case.folder / "net.onnx")
    text = case.refused(code=3)
    assert "net.onnx: there is nothing to quantize" in text
    assert "Conv, Gemm and MatMul with constant float32 weights" in text


def test_everything_asked_to_be_float(case):
    case.recipe["bits"] = {"layers": {"op:*": "float"}} | {"weights": "float"}
    assert "write weights: 8, or both float" in case.refused()
    case.recipe["bits"] = {"weights": "float", "activations": "float"}
    assert "there is nothing to quantize" in case.refused(code=3)


def test_a_quantized_model(case):
    code, _, _ = case.run()
    assert code == 0
    (case.folder / "out/model.onnx").rename(case.folder / "net.onnx")
    import shutil

    shutil.rmtree(case.folder / "out")
    text = case.refused(code=3)
    assert "net.onnx: already quantized" in text and "give the float model" in text


def test_evaluation_samples_that_calibrated(case):
    """12 of 12 is an error that names one; asked for, it is allowed."""
    case.recipe["evaluate"]["images"] = "train"
    text = case.refused()
    assert "r.yaml:" in text and "12 of 12 evaluation samples are calibration samples" in text
    assert "0/0.png" in text and "at most 1%" in text and "allow_overlap" in text
    case.recipe["evaluate"]["allow_overlap"] = True
    assert case.run()[0] == 0


def test_a_little_overlap_is_dropped_and_named(case):
    """One calibration image is among 120 evaluation images: below 1 %."""
    images(case.folder / "test", each=40, seed=5)
    twin = case.folder / "train/1/3.png"
    (case.folder / "test/1/39.png").write_bytes(twin.read_bytes())
    assert case.run()[0] == 0
    report = Report.read(case.folder / "out")
    assert report.data.calibration.count == 11
    assert report.data.evaluation.count == 120
    (note,) = [n for n in report.stages[0].notes if "dropped" in n]
    assert note.startswith("1 calibration samples are evaluation samples too") and "1/3.png" in note


def test_a_failing_run_keeps_what_an_earlier_one_wrote(case):
    assert case.run()[0] == 0
    kept = {p: p.read_bytes() for p in (case.folder / "out").iterdir() if p.is_file()}
    images(case.folder / "test", classes=5, seed=1)
    code, _, _ = case.run()
    assert code == 2
    assert {p: p.read_bytes() for p in (case.folder / "out").iterdir() if p.is_file()} == kept


def test_a_plan_of_another_model(case):
    assert case.run()[0] == 0
    (case.folder / "out").rename(case.folder / "old")
    net = Net(opset=21)
    x = net.add("GlobalAveragePool", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    net.output(net.add("Flatten", x, out="y"))
    onnx.save(net.proto(), case.folder / "net.onnx")
    del case.recipe["evaluate"]
    text = case.refused("--plan", "old/plan.json")
    assert "plan old/plan.json: it was made for another model" in text


def test_a_damaged_plan(case):
    (case.folder / "plan.json").write_text("{")
    text = case.refused("--plan", "plan.json")
    assert "plan plan.json: not a readable plan" in text


def test_a_size_that_calibration_and_evaluation_settle_differently(case):
    net = Net(opset=21)
    x = net.add("ReduceMean", net.add("MatMul", net.input("x", "N", "T", 4), net.weight(4, 8)),
                net.const(np.array([1])), keepdims=0)  # fmt: skip
    net.output(net.add("Gemm", x, net.weight(8, 2), out="y"))
    onnx.save(net.proto(), case.folder / "net.onnx")
    for name, size in (("train", 3), ("test", 6)):
        x = np.random.default_rng(size).standard_normal((8, size, 4)).astype(np.float32)
        np.savez(case.folder / f"{name}.npz", x=x)
    case.recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": "train.npz"},
        "evaluate": {"arrays": "test.npz"},
    }
    text = case.refused()
    assert "leaves T open" in text and "3 (calibrate), 6 (evaluate)" in text
    assert "{x: [N, 6, 4]}" in text
    # The line itself: what is not of that size is named.
    case.recipe["model"] = {"onnx": "net.onnx", "input": {"x": ["N", 6, 4]}}
    assert "train.npz: array `x`: has shape [8, 3, 4]" in case.refused()
    case.recipe["calibrate"] = {"arrays": "test.npz", "count": 4, "allow_overlap": True}
    assert case.run()[0] in (0, 1)


def test_a_batch_that_is_nearly_all_padding(case):
    classifier(case.folder / "net.onnx", batch=5000)
    text = case.refused()
    assert "its batch is fixed to 5000 samples and the data has 12" in text
    assert "open batch" in text
