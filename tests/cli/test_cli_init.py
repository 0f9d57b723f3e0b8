"""``qtool init``: what it makes of folders and models whose right reading is known."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from command import qtool
from models import Net
from PIL import Image
from scipy.io import wavfile

from qtool.data import InputSpec, open_dataset
from qtool.errors import DataError
from qtool.pipeline.proposal.propose import propose
from qtool.pipeline.proposal.recipe_text import recipe_text
from qtool.pipeline.proposal.trial import _scored, difference
from qtool.recipe.data_folder import data_sources
from qtool.recipe.loader import load_recipe

COLOURS = {"blue": 2, "green": 1, "red": 0}  # class folder -> bright channel


def images(folder: Path, each: int, size: int = 8) -> None:
    """Write ``each`` images a class; one channel is brighter by 20 of 255."""
    rng = np.random.default_rng(each)
    for name, channel in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for k in range(each):
            pixels = rng.integers(60, 160, (size, size, 3))
            pixels[..., channel] += 20
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k}.png")


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """A classifier that expects -1 to 1 in BGR order: its scores are channel means."""
    made = Net(opset=21)
    x = made.add("Flatten", made.add("GlobalAveragePool", made.input("x", "N", 3, 8, 8)))
    # Bright pixels of 0 to 255, or darker ones of 0 to 1, push a fourth score above the others.
    weight = np.array([[40, 0, 0], [0, 40, 0], [0, 0, 40], [60, 60, 60]], np.float32)
    bias = np.array([0, 0, 0, -40], np.float32)
    y = made.add("Gemm", x, made.const(weight), made.const(bias), transB=1, out="y")
    path = tmp_path_factory.mktemp("init") / "net.onnx"
    onnx.save(made.output(y).proto(), path)
    return path


def test_the_right_preprocessing_is_named_and_the_recipe_runs(net, tmp_path):
    images(tmp_path / "data/train", 30)
    images(tmp_path / "data/test", 10)
    done = qtool("init", net, tmp_path / "data", "--out", tmp_path / "made.yaml")
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(tmp_path / "made.yaml")
    settings = recipe.calibrate.preprocess
    assert settings.color == "bgr"
    assert settings.scale == pytest.approx(1 / 127.5) and settings.mean == 1.0
    assert recipe.calibrate.images == str(tmp_path / "data/train")
    assert recipe.evaluate.images == str(tmp_path / "data/test")
    assert recipe.evaluate.metric == "top1" and recipe.gates.max_drop == 1.0
    assert "tf, color: bgr, 100.0 % of 64 labelled samples; next: " in done.stdout
    assert qtool("check", tmp_path / "made.yaml").returncode == 0


def test_the_images_own_statistics_are_tried(digits, tmp_path):
    """The digits network takes (x - 0.3) / 0.3, which no named setting is."""
    proposal = propose(digits / "digits.onnx", digits / "data", "onnxruntime-cpu")
    settings = proposal.sections["calibrate"]["preprocess"]
    assert settings["mean"] == pytest.approx(0.3, abs=0.02)
    assert settings["std"] == pytest.approx(0.3, abs=0.1)
    assert "own mean and deviation" in proposal.comments["calibrate", "preprocess"]


def test_a_recipe_is_replaced_only_when_told(net, tmp_path):
    images(tmp_path / "data", 3)
    (tmp_path / "made.yaml").write_text("precious")
    refused = qtool("init", net, tmp_path / "data", "--out", tmp_path / "made.yaml")
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert (tmp_path / "made.yaml").read_text() == "precious"
    done = qtool("init", net, tmp_path / "data", "--out", tmp_path / "made.yaml", "--overwrite")
    assert done.returncode == 0 and "calibrate" in (tmp_path / "made.yaml").read_text()


def test_parts_without_telling_names_are_told_by_size(tmp_path):
    images(tmp_path / "alpha", 2)
    images(tmp_path / "omega", 5)
    (source,) = data_sources(tmp_path)
    assert source.calibrate == str(tmp_path / "omega")
    assert source.evaluate == str(tmp_path / "alpha")
    assert "size" in source.reason


def test_one_part_is_divided_by_take(tmp_path):
    images(tmp_path / "val", 2)
    (source,) = data_sources(tmp_path)
    calibrate, evaluate = source.sections(512)
    assert calibrate == {"images": str(tmp_path / "val"), "take": {"every": 2}, "count": 512}
    assert evaluate["take"] == {"every": 2, "offset": 1}


def test_class_folders_are_no_parts(tmp_path):
    images(tmp_path, 2)
    (source,) = data_sources(tmp_path)
    assert (source.calibrate, source.evaluate) == (str(tmp_path), None)


def test_flat_images_take_the_label_file_that_names_them(tmp_path):
    images(tmp_path / "classes", 2)
    flat = tmp_path / "flat"
    flat.mkdir()
    for k, path in enumerate(sorted((tmp_path / "classes").rglob("*.png"))):
        path.rename(flat / f"i{k}.png")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "truth.tsv").write_text("".join(f"i{k}.png\t{k % 3}\n" for k in range(6)))
    (source,) = data_sources(flat)
    assert source.labels == (None, None)
    for name in COLOURS:
        (tmp_path / "classes" / name).rmdir()
    (tmp_path / "classes").rmdir()
    (source,) = data_sources(tmp_path)
    assert source.labels == (tmp_path / "truth.tsv", tmp_path / "truth.tsv")


def flat_images(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for name in names:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)


def test_each_part_takes_its_own_label_file(net, tmp_path):
    for part, count in (("train", 12), ("test", 6)):
        names = [f"{part}{k}.png" for k in range(count)]
        flat_images(tmp_path / part, names)
        lines = "".join(f"{name},{k % 3}\n" for k, name in enumerate(names))
        (tmp_path / f"{part}.csv").write_text(lines)
    sections = propose(net, tmp_path, "onnxruntime-cpu").sections
    assert sections["calibrate"]["labels"] == str(tmp_path / "train.csv")
    assert sections["evaluate"]["labels"] == str(tmp_path / "test.csv")


def test_a_part_without_a_class_keeps_the_numbers_of_the_others(net, tmp_path):
    images(tmp_path / "train", 4)
    images(tmp_path / "test", 3)
    for path in [*(tmp_path / "test/blue").iterdir(), tmp_path / "test/blue"]:
        path.rmdir() if path.is_dir() else path.unlink()
    proposal = propose(net, tmp_path, "onnxruntime-cpu")
    (tmp_path / "made.yaml").write_text(recipe_text(proposal, tmp_path / "made.yaml"))
    recipe = load_recipe(tmp_path / "made.yaml")
    inputs = {"x": InputSpec("x", ("N", 3, 8, 8), "float32")}
    assert set(open_dataset(recipe.calibrate, inputs).labels) == {0, 1, 2}
    assert set(open_dataset(recipe.evaluate, inputs).labels) == {1, 2}


def test_a_label_file_is_found_far_behind_its_beginning(tmp_path):
    flat_images(tmp_path / "images", ["z1.png", "z2.png"])
    lines = [f"a{k:06}.png,1\n" for k in range(20_000)]
    (tmp_path / "truth.csv").write_text("".join([*lines, "z1.png,0\n", "z2.png,1\n"]))
    (source,) = data_sources(tmp_path)
    assert source.labels[0] == tmp_path / "truth.csv"


def test_flat_parts_without_a_training_name_are_no_classes(tmp_path):
    for part, count in (("val", 3), ("test", 2)):
        flat_images(tmp_path / part, [f"{k}.png" for k in range(count)])
    (source,) = data_sources(tmp_path)
    assert source.calibrate == str(tmp_path / "val")
    assert source.evaluate == str(tmp_path / "test")


def test_damaged_arrays_are_no_samples(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"cut\.npz: damaged"):
        data_sources(tmp_path)
    np.savez(tmp_path / "whole.npz", x=np.zeros((4, 2), np.float32))
    (source,) = data_sources(tmp_path)
    assert source.calibrate == str(tmp_path / "whole.npz")


def test_three_files_without_names_are_batches(tmp_path):
    for k in range(3):
        np.savez(tmp_path / f"{k}.npz", x=np.zeros((4 + k, 2), np.float32))
    (source,) = data_sources(tmp_path)
    assert (source.calibrate, source.evaluate) == (str(tmp_path), None)


def test_many_npy_files_are_parts_and_no_folder_of_batches(tmp_path):
    for k in range(20):
        np.save(tmp_path / f"{k:02}.npy", np.zeros((4 + k, 2), np.float32))
    (source,) = data_sources(tmp_path)
    assert source.calibrate == str(tmp_path / "19.npy")
    assert source.evaluate == str(tmp_path / "18.npy")


def test_negative_labels_and_overflowing_outputs_are_scored():
    outputs, labels = np.array([[1, 0], [np.nan, 0]], np.float32), np.array([0, 1])
    assert _scored({}, outputs, labels - 1).losses is None
    trial = _scored({}, outputs, labels)
    assert trial.losses.argmax() == 1 and np.isinf(trial.losses[1])
    assert difference(_scored({}, outputs[:1], labels[:1]), trial) == np.inf


def test_arrays_of_one_form_are_parts_and_the_form_that_fits_wins(net, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("a_train", 40), ("a_dev", 9), ("a_test", 12)):
        x = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
        means = x.mean((2, 3))
        np.savez(tmp_path / f"{name}.npz", x=x * 20, y=means.argmax(1))
    np.savez(tmp_path / "b.npz", tokens=np.zeros((100, 7), np.int64))
    proposal = propose(net, tmp_path, "onnxruntime-cpu")
    assert proposal.sections["calibrate"]["arrays"] == str(tmp_path / "a_train.npz")
    assert proposal.sections["evaluate"]["arrays"] == str(tmp_path / "a_test.npz")
    assert proposal.runs and not proposal.unknown


def test_what_cannot_be_read_is_said_in_the_recipe(net, tmp_path):
    np.savez(tmp_path / "words.npz", x=np.zeros((20, 8, 8, 3), np.uint8), y=np.array(["cat"] * 20))
    proposal = propose(net, tmp_path, "onnxruntime-cpu")
    assert not proposal.runs and "[N, 3, 8, 8]" in proposal.unknown[0]
    text = recipe_text(proposal, tmp_path / "made.yaml")
    assert "# Not known: how `arrays` feeds the model" in text
    np.savez(tmp_path / "words.npz", x=np.zeros((20, 3, 8, 8), np.float32), y=["cat"] * 20)
    proposal = propose(net, tmp_path, "onnxruntime-cpu")
    assert proposal.runs and "metric" in proposal.unknown[0]
    assert "gates" not in proposal.sections


def test_a_streaming_network_and_its_states_are_named(tmp_path):
    made = Net(opset=21)
    x, state = made.input("x", "N", 16), made.input("state", "N", 4)
    joined = made.add("Concat", x, state, axis=1)
    made.output(made.add("Gemm", joined, made.weight(20, 1), out="score"))
    made.output(made.add("Gemm", joined, made.weight(20, 4), out="stateN"))
    onnx.save(made.proto(), tmp_path / "net.onnx")
    (tmp_path / "sounds").mkdir()
    for k in range(4):
        samples = np.random.default_rng(k).integers(-99, 99, 64).astype(np.int16)
        wavfile.write(tmp_path / f"sounds/{k}.wav", 16000, samples)
    proposal = propose(tmp_path / "net.onnx", tmp_path / "sounds", "onnxruntime-cpu")
    assert "streaming network" in proposal.comments["model",]
    assert "(state from stateN)" in proposal.comments["model",]
    assert "loop: {stateN: state}" in proposal.unknown[0] and not proposal.runs


def test_a_reader_of_text_is_named(tmp_path):
    made = Net(opset=21)
    x = made.add("Transpose", made.input("x", "N", 3, 8, 5), perm=[0, 3, 1, 2])
    x = made.add("Reshape", x, made.const(np.array([0, 5, 24])))
    made.output(made.add("MatMul", x, made.weight(24, 7), out="steps"), shape=("N", 5, 7))
    onnx.save(made.proto(), tmp_path / "net.onnx")
    np.savez(tmp_path / "words.npz", x=np.zeros((20, 8, 5, 3), np.uint8), y=["cat"] * 20)
    proposal = propose(tmp_path / "net.onnx", tmp_path / "words.npz", "onnxruntime-cpu")
    assert "7 classes at each step, such as a reader of text" in proposal.comments["model",]
    assert "[20, 8, 5, 3]" in proposal.unknown[0] and "readers python" in proposal.unknown[0]


def test_labels_that_no_preprocessing_explains_are_called_a_guess(net, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(48):
        folder = tmp_path / list(COLOURS)[k % 3]
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    proposal = propose(net, tmp_path, "onnxruntime-cpu")
    assert proposal.comments["calibrate", "preprocess"].startswith("a guess: none is better")
    assert "no better than chance" in proposal.unknown[0]


def test_a_folder_of_nothing_is_refused(net, tmp_path):
    (tmp_path / "notes.pdf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds \.pdf; expected images"):
        data_sources(tmp_path)
    done = qtool("init", net, tmp_path / "gone", "--out", tmp_path / "made.yaml")
    assert done.returncode == 2 and not (tmp_path / "made.yaml").exists()
