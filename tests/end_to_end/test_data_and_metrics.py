"""Every reader at a fixed batch, and every metric: small recipes through the real command."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from models import Net
from onnx import TensorProto, helper
from PIL import Image
from scipy.io import wavfile
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.data import DataSection, InputSpec, open_dataset

COUNT = 10
RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (2 * COUNT, 3, 16, 16), dtype=np.uint8)
X = (PIXELS / 255).astype(np.float32)
LABELS = RNG.integers(0, 3, 2 * COUNT)
EVERY = {"calibrate": {"every": 2, "offset": 0}, "evaluate": {"every": 2, "offset": 1}}


def ptq(folder, recipe, *options):
    """Run `qtool ptq` on a recipe; returns (exit code, report or None, all that was said)."""
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    words = ["ptq", "--recipe", "r.yaml", "--out", "run", "--threads", "1", "--json", *options]
    os.chdir(folder)
    result = CliRunner().invoke(app, words)
    report = json.loads(result.stdout) if result.exit_code in (0, 1) else None
    return result.exit_code, report, result.stderr


@pytest.fixture(autouse=True)
def back(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def classifier(batch, x="x"):
    net = Net()
    value = net.add("Relu", net.conv(net.input(x, batch, 3, 16, 16), 3, 8))
    value = net.add("Flatten", net.add("GlobalAveragePool", value))
    return net.output(net.add("Gemm", value, net.weight(3, 8), net.weight(3), transB=1, out="y"))


def listener(batch):
    net = Net()
    value = net.add("Relu", net.add("Gemm", net.input("x", batch, 64), net.weight(64, 16)))
    return net.output(net.add("Gemm", value, net.weight(16, 3), out="y"))


def encoder(batch):
    net = Net()
    ids = net.input("input_ids", batch, 6, dtype=TensorProto.INT64)
    mask = net.input("attention_mask", batch, 6, dtype=TensorProto.INT64)
    value = net.add("Gather", net.weight(7, 8), ids)
    seen = net.add("Unsqueeze", net.add("Cast", mask, to=1), net.const(np.array([2])))
    value = net.add("ReduceMean", net.add("Mul", value, seen), axes=[1], keepdims=0)
    return net.output(net.add("Gemm", value, net.weight(8, 3), net.weight(3), out="y"))


def arrays(folder):
    np.savez(folder / "data.npz", x=X, label=LABELS)
    return {"arrays": "data.npz"}


def images(folder):
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(place / f"{number:02}.png")
    return {"images": "images", "preprocess": {"scale": 1 / 255}}


def text(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "the", "film", "is", "good"]
    (folder / "vocab.txt").write_text("\n".join(words))
    lines = [f"{' '.join(RNG.choice(words[3:], 4))} {k}\t{label}" for k, label in enumerate(LABELS)]
    (folder / "t.tsv").write_text("\n".join(lines))
    return {"text": {"path": "t.tsv", "tokenizer": "vocab.txt"}}


def wav(folder):
    for number, label in enumerate(LABELS):
        place = folder / "sounds" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        wavfile.write(place / f"{number:02}.wav", 8000, RNG.normal(0, 9000, 90).astype(np.int16))
    return {"wav": "sounds"}


def python(folder):
    np.savez(folder / "data.npz", x=X, label=LABELS)
    (folder / "own_batches.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "def read(size):\n"
        "    print('reading')\n"
        "    with np.load(Path(__file__).with_name('data.npz')) as found:\n"
        "        for k in range(0, 20, size):\n"
        "            yield {name: found[name][k : k + size] for name in ('x', 'label')}\n"
    )
    return {"python": {"function": "own_batches:read", "args": {"size": 3}}}


READERS = [
    (images, classifier),
    (arrays, classifier),
    (text, encoder),
    (wav, listener),
    (python, classifier),
]


@pytest.mark.parametrize(("reader", "model"), READERS)
def test_a_batch_of_four_is_honoured_with_ten_samples(tmp_path, reader, model):
    section = reader(tmp_path)
    onnx.save(model(4).proto(), tmp_path / "net.onnx")
    onnx.save(model("N").proto(), tmp_path / "free.onnx")
    recipe = {"model": "net.onnx"}
    recipe |= {name: {**section, "take": take} for name, take in EVERY.items()}
    recipe["calibrate"]["allow_overlap"] = reader is text  # rows may say the same
    options = ["--trust-code"] if reader is python else []
    code, report, said = ptq(tmp_path, recipe, *options)
    assert code == 0, said
    accuracy = report["accuracy"]
    assert accuracy["samples"] == COUNT == report["data"]["evaluation"]["count"]
    assert report["latency"]["batch"] == 4
    assert accuracy["float"] == pytest.approx(free_accuracy(tmp_path, options), abs=1e-4)
    # what was resolved runs again, from the run folder, to the same file
    again = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    code, repeated, said = ptq(tmp_path / "run", again, *options)
    assert code == 0, said
    assert repeated["output"]["sha256"] == report["output"]["sha256"]


def free_accuracy(folder, options):
    """Top 1 in % of the same network with a free batch, one sample at a time."""
    session = ort.InferenceSession(folder / "free.onnx", providers=["CPUExecutionProvider"])
    inputs = {
        node.name: InputSpec(
            node.name, tuple(node.shape), "int64" if "int64" in node.type else "float32"
        )
        for node in session.get_inputs()
    }
    resolved = yaml.safe_load((folder / "run" / "recipe.yaml").read_text())["evaluate"]
    kept = {key: value for key, value in resolved.items() if key in DataSection.model_fields}
    section = DataSection.model_validate(kept)
    right = []
    for batch in open_dataset(section, inputs, trust_code=bool(options)).batches(1):
        label = batch.pop("label")
        right.append(session.run(None, batch)[0].argmax() == label[0])
    return 100 * np.mean(right)


def test_code_is_not_run_without_consent(tmp_path):
    section = python(tmp_path)
    (tmp_path / "own_batches.py").write_text("raise SystemExit('it ran')")
    onnx.save(classifier("N").proto(), tmp_path / "net.onnx")
    code, _, said = ptq(tmp_path, {"model": "net.onnx", "calibrate": section})
    assert code == 2 and "add --trust-code" in said and "it ran" not in said
    assert not (tmp_path / "run").exists()
    recipe = {"model": "net.onnx", "calibrate": arrays(tmp_path)}
    recipe["evaluate"] = {**recipe["calibrate"], "metric": "own_batches:score"}
    code, _, said = ptq(tmp_path, recipe)
    assert code == 2 and "evaluate.metric: own_batches:score is code" in said


def painter(channels):
    net = Net()
    value = net.add("Relu", net.conv(net.input("x", "N", 3, 16, 16), 3, 8))
    value = net.conv(value, 8, channels)
    return net.output(net.add("Sigmoid", value, out="y"))


def speaker():
    net = Net()
    value = net.add("GlobalAveragePool", net.conv(net.input("x", "N", 3, 16, 16), 3, 8))
    value = net.add("Gemm", net.add("Flatten", value), net.weight(20, 8), transB=1)
    value = net.add("Reshape", value, net.const(np.array([-1, 4, 5])))
    net.add("ArgMax", value, axis=2, keepdims=0, out="y")
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 4]))
    return net


def finder():
    net = Net()
    value = net.add("GlobalAveragePool", net.conv(net.input("x", "N", 3, 16, 16), 3, 8))
    value = net.add("Gemm", net.add("Flatten", value), net.weight(12, 8), transB=1)
    value = net.add("Reshape", value, net.const(np.array([-1, 2, 6])))
    boxes = np.array([[0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 1]])
    little = net.add("Mul", value, net.const(np.array([1, 1, 1, 1, 1e-3, 0.0])))
    return net.output(net.add("Add", little, net.const(boxes), out="y"))


BOXES = np.tile(np.array([[0, 0, 10, 10, 0], [20, 20, 30, 30, 1.0]]), (2 * COUNT, 1, 1))
TOKENS = np.concatenate([RNG.integers(0, 5, (2 * COUNT, 3)), np.full((2 * COUNT, 1), -1)], axis=1)
MAPS = RNG.integers(0, 4, (2 * COUNT, 16, 16))

METRIC_CASES = {
    "f1": (classifier("N"), LABELS, "%"),
    "top1": (classifier("N"), LABELS, "%"),
    "miou": (painter(4), MAPS, "%"),
    "psnr": (painter(3), X, "dB"),
    "ssim": (painter(3), X, "%"),
    "wer": (speaker(), TOKENS, "%"),
    "map": (finder(), BOXES, "%"),
    "cosine": (painter(3), None, "%"),
    "sqnr": (painter(3), None, "dB"),
    "custom_metric:score": (painter(3), X, "grey"),
}


@pytest.mark.parametrize("metric", METRIC_CASES)
def test_a_metric_in_a_recipe(tmp_path, metric):
    if metric == "map":
        pytest.importorskip("pycocotools")
    net, labels, unit = METRIC_CASES[metric]
    onnx.save(net.proto(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=X, **({} if labels is None else {"label": labels}))
    (tmp_path / "custom_metric.py").write_text(
        "def score(outputs, labels):\n"
        "    return abs(outputs - labels).mean(axis=(1, 2, 3))\n"
        "score.lower_is_better = True\nscore.unit = 'grey'\n"
    )
    recipe = {"model": "net.onnx", "gates": {"max_drop": 50.0}}
    recipe |= {name: {"arrays": "data.npz", "take": take} for name, take in EVERY.items()}
    recipe["evaluate"]["metric"] = metric
    if metric == "sqnr":
        del recipe["gates"]
    code, report, said = ptq(tmp_path, recipe, "--trust-code")
    assert code == 0, said
    accuracy = report["accuracy"]
    assert (accuracy["metric"], accuracy["unit"], accuracy["samples"]) == (metric, unit, COUNT)
    assert np.isfinite(accuracy["quantized"]) and np.isfinite(accuracy["simulated"])
    if metric == "sqnr":
        assert accuracy["quantized"] > 20 and "drop" not in accuracy
        return
    sign = -1 if metric in ("wer", "custom_metric:score") else 1
    before = 100.0 if metric == "cosine" else accuracy["float"]
    expected = sign * (before - accuracy["quantized"])
    assert accuracy["drop"] == pytest.approx(expected, abs=2e-6)  # three numbers rounded to 1e-6
    if metric == "map":
        assert "drop_ci95" not in accuracy and accuracy["float"] > 30
    else:
        lo, hi = accuracy["drop_ci95"]
        assert lo - 1e-4 <= accuracy["drop"] <= hi + 1e-4
    assert ("agreement" in accuracy) == (metric in ("f1", "top1", "miou"))


def test_label_maps_come_from_a_folder_beside_the_images(tmp_path):
    images(tmp_path)
    for path in sorted((tmp_path / "images").rglob("*.png")):
        place = tmp_path / "maps" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(MAPS[int(path.stem)].astype(np.uint8)).save(place / path.name)
    onnx.save(painter(4).proto(), tmp_path / "net.onnx")
    section = {"images": "images", "preprocess": {"scale": 1 / 255}}
    recipe = {"model": "net.onnx"}
    recipe |= {name: {**section, "take": take} for name, take in EVERY.items()}
    recipe["evaluate"] |= {"labels": "maps", "metric": "miou"}
    code, report, said = ptq(tmp_path, recipe)
    assert code == 0, said
    assert 0 < report["accuracy"]["float"] < 50 and report["accuracy"]["metric"] == "miou"
    first = next(iter(Path("maps").rglob("*.png")))
    first.unlink()
    code, _, said = ptq(tmp_path, recipe | {"evaluate": {**recipe["evaluate"], "take": {}}})
    assert code == 2 and first.name in said and "expected the label map of the image" in said


def test_a_metric_that_needs_labels_says_so_before_anything_is_done(tmp_path):
    onnx.save(painter(3).proto(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    recipe = {"model": "net.onnx"}
    recipe |= {name: {"arrays": "data.npz", "take": take} for name, take in EVERY.items()}
    recipe["evaluate"]["metric"] = "psnr"
    code, _, said = ptq(tmp_path, recipe)
    assert code == 2 and "psnr needs labels" in said and "cosine or sqnr" in said


@pytest.mark.parametrize("channels", [1, 3])
def test_without_labels_the_float_model_is_the_measure(tmp_path, channels):
    onnx.save(painter(channels).proto(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    recipe = {"model": "net.onnx"}
    recipe |= {name: {"arrays": "data.npz", "take": take} for name, take in EVERY.items()}
    code, report, said = ptq(tmp_path, recipe)
    assert code == 0, said
    accuracy = report["accuracy"]
    if channels == 1:  # no classes to agree on
        assert accuracy["metric"] == "sqnr" and accuracy["quantized"] > 20
        scores = {"simulated", "simulated_samples", "quantized"}
        assert set(accuracy) == {"metric", "unit", "samples"} | scores
    else:
        assert set(accuracy) == {"samples", "agreement", "agreement_ci95"}
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


@pytest.mark.slow
def test_sst2_from_raw_text_equals_the_arrays():
    root = os.environ.get("QTOOL_DATA")
    if not root:
        pytest.skip("QTOOL_DATA is not set: real networks and data are needed")
    sst2, model = Path(root) / "sst2", Path(root) / "models" / "sst2_transformer2l.onnx"
    inputs = {n: InputSpec(n, ("N", 48), "int64") for n in ("input_ids", "attention_mask")}
    for part in ("train", "dev", "test"):
        table = {"path": str(sst2 / f"{part}.tsv"), "tokenizer": str(sst2 / "vocab.txt")}
        data = open_dataset(DataSection(text=table), inputs)
        with np.load(sst2 / f"sst2_{part}.npz") as saved:
            (batch,) = data.batches(data.count)
            for name in (*inputs, "label"):
                assert np.array_equal(batch[name], saved[name]), (part, name)
    found = []
    for kind in ("text", "arrays"):
        recipe = {"model": str(model)}
        for name, part in (("calibrate", "train"), ("evaluate", "test")):
            table = {"path": str(sst2 / f"{part}.tsv"), "tokenizer": str(sst2 / "vocab.txt")}
            saved = str(sst2 / f"sst2_{part}.npz")
            recipe[name] = {"text": table} if kind == "text" else {"arrays": saved}
        code, report, said = ptq(Path.cwd(), recipe)
        assert code == 0, said
        accuracy = report["accuracy"]
        del accuracy["changed_samples"]  # their names hold the file's
        # Its metadata holds the digest of the recipe.
        graph = onnx.load(Path("run", report["output"]["path"])).graph
        found.append(
            (accuracy, hashlib.sha256(graph.SerializeToString(deterministic=True)).digest())
        )
    assert found[0] == found[1] and found[0][0]["samples"] == 1821
