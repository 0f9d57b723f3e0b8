"""``qtool qat``: its options and its report, from the command line."""

import json

import numpy as np
import onnx
import pytest
from command import qtool
from models import Net
from PIL import Image
from test_cli_qat import folder
from typer.testing import CliRunner

from qtool.cli.main import app

assert folder  # a fixture

LOSSES = """
import torch

def half(output, labels):
    print("on stderr")
    return torch.nn.functional.cross_entropy(output, labels) / 2
"""


def train(folder, out, *settings):
    words = [word for setting in settings for word in ("--set", setting)]
    return qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / out, *words)


def report(folder, out):
    return json.loads((folder / out / "report.json").read_text())


@pytest.mark.parametrize(("share", "held"), [(0.999, 20), (0.02, 0)])
def test_a_share_for_validation_that_leaves_nothing(folder, share, held):
    done = train(folder, "no", "qat.count=20", f"qat.validation={share}")
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert f"qat.validation: {share} of 20 samples is {held}" in done.stderr
    assert "write a share from 0.05 to 0.95" in done.stderr and not (folder / "no").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["bits.weights=1"], "bits.weights: 1: quantizer lsq trains weights of 2, 3"),
        (["bits.scheme=kmeans"], "bits.scheme: kmeans: quantizer lsq trains uniform weights"),
        (["bits.layers={last: {weights: 1}}"], "bits.layers.last.weights: 1: quantizer lsq"),
        (["qat.quantizer=twn", "bits.scheme=uniform", "bits.weights=2"], "scheme: ternary"),
        (["qat.quantizer=ttq", "bits.weights=4"], "ttq trains weights of 2 or 8 bits and more"),
        (["qat.quantizer=bwn", "bits.weights=8", "bits.layers={}"], "none; set bits.weights"),
        (["qat.quantizer=bwn", "bits.weights=1", "calibrate.weights=mse"], "bwn trains binary"),
        (["bits.scale=power_of_two", "qat.batchnorm=live"], "write batchnorm: folded"),
        (
            ["target=integer-only", "bits={weights: 2}", "qat.quantizer=ttq"],
            "target integer-only has power_of_two: scales of quantizer ttq follow from several",
        ),
        (
            ["bits.scale=fixed_point", "qat.oscillation={freeze: 0.02}"],
            "qat.oscillation.freeze: frozen weights follow their scale",
        ),
        (["bits.activations=dynamic"], "bits.activations: dynamic: grids found at run time"),
        (
            ["qat.quantizer={lsq: {extra_bits: 2}}"],
            "qat.quantizer: found extra_bits among the options of lsq, expected it beside quant",
        ),
        (
            ["bits={weights: 8}", "qat.extra_bits=2"],
            "qat.extra_bits: 2: quantizer lsq has no grids with equal steps of less than 8 bits",
        ),
        (
            ["bits={weights: 1, activations: 8}", "qat.quantizer=bwn", "qat.extra_bits=1"],
            "qat.extra_bits: 1: quantizer bwn has no grids with equal steps of less than 8 bits",
        ),
        (
            ["bits={weights: 8, activations: 4}", "qat.quantizer={nice: {share: 0.1}}"],
            "qat.quantizer.nice.share: has no effect without weights of less than 8 bits",
        ),
        (
            ["bits={weights: 1}", "qat.quantizer={xnor: {gradient: approx_sign}}"],
            "qat.quantizer.xnor.gradient: has no effect without activations of 1 bit",
        ),
        (
            ["qat.quantizer={ste: {momentum: 0.1}}"],
            "qat.quantizer.ste.momentum: has no effect without ranges: ema and integer activations",
        ),
        (
            [
                "bits={weights: 3, activations: float}",
                "qat.quantizer={ste: {ranges: ema, momentum: 0.1}}",
            ],
            "qat.quantizer.ste.momentum: has no effect without ranges: ema and integer activations",
        ),
        (
            ["bits={weights: 8, activations: float}", "qat.quantizer={ewgs: {delta: 0.1}}"],
            "qat.quantizer.ewgs.delta: has no effect without weights of less than 8 bits or integ",
        ),
        (
            ["qat.quantizer=kmeans", "qat.weight_decay=0.1"],
            "qat.weight_decay: 0.1: quantizer kmeans with these options leaves the weights as they",
        ),
        (
            ["bits={weights: 2, scheme: {ternary: {exact: true}}}", "qat.quantizer=twn"],
            "bits.scheme: ternary: quantizer twn computes its levels from the weights",
        ),
        (["qat.quantizer=faq", "qat.scale_lr=0.01"], "qat.scale_lr: no scale of quantizer faq"),
        (
            ["bits={weights: 8, activations: float}", "qat.scale_lr=0.01"],
            "qat.scale_lr: no scale of quantizer lsq learns at these widths",
        ),
        (
            ["bits={weights: 2, activations: float}", "qat.quantizer=pact", "qat.scale_lr=0.01"],
            "qat.scale_lr: no scale of quantizer pact learns at these widths",
        ),
    ],
)
def test_grids_that_cannot_be_trained_are_refused_before_the_model_is_read(folder, settings, said):
    (folder / "broken.onnx").write_bytes(b"no model")
    done = train(folder, "no", "model=broken.onnx", *settings)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (folder / "no").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "values", "settings"),
    [
        ("twn", 2, 3, []),
        ("ttq", 2, 3, []),
        ("bwn", 1, 2, []),
        ("kmeans", 3, 8, []),
        ("apot", 3, 7, []),
        ("n2uq", 2, 4, []),
        ("sat", 1, 2, ["target=integer-only"]),
        ("lsq", 3, 8, ["bits.scale=fixed_point"]),
        ("xnor", 1, 2, ["bits.activations=1"]),
    ],
)
def test_what_a_quantizer_trained_is_what_is_written(folder, name, weights, values, settings):
    ends = "bits.layers={first: 8, last: 8}"
    words = [f"qat.quantizer={name}", f"bits.weights={weights}", ends, "qat.epochs=2", *settings]
    done = train(folder, f"q-{name}", *words)
    assert done.returncode == 0, done.stderr
    written = report(folder, f"q-{name}")
    assert written["parity"]["share_off"] == 0 and written["parity"]["max_lsb"] == 0
    assert written["accuracy"]["quantized"] == written["accuracy"]["simulated"]
    assert 0 < written["size"]["weight_huffman_bytes"] < written["size"]["quantized_bytes"]
    plan = np.load(folder / f"q-{name}" / "plan.npz")
    body = [plan[key] for key in plan.files if key.startswith("codes/") and plan[key].ndim == 4]
    assert len(np.unique(body[-1])) <= values


@pytest.mark.parametrize("settings", [[], ["qat.distill={weight: 1}"]])
def test_a_model_with_class_numbers_as_outputs_is_refused(folder, settings):
    proto = onnx.load(folder / "net.onnx")
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.node.append(onnx.helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, "N"))
    onnx.save(proto, folder / "argmax.onnx")
    done = train(folder, "no", "model=argmax.onnx", "evaluate.metric=accuracy", *settings)
    assert done.returncode == 2 and "output y is int64" in done.stderr, done.stderr
    assert not (folder / "no").exists()


@pytest.mark.slow
def test_a_loss_of_ones_own_needs_trust_and_trains(folder):
    (folder / "my_loss.py").write_text(LOSSES)
    words = ["--set", "qat.loss=my_loss:half", "--set", "qat.epochs=2"]
    done = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "o1", *words)
    assert done.returncode == 2 and "add --trust-code" in done.stderr
    assert not (folder / "o1").exists() and "calibrate" not in done.stderr
    words = ["--trust-code", *words]
    done = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "o1", *words)
    assert done.returncode == 0, done.stderr
    assert "on stderr" in done.stderr and "on stderr" not in done.stdout
    assert train(folder, "o2", "qat.epochs=2").returncode == 0
    own, usual = (report(folder, k)["data"]["training"]["epochs"] for k in ("o1", "o2"))
    assert own[1]["loss"] == pytest.approx(usual[1]["loss"] / 2, rel=0.2)
    again = qtool("qat", "--recipe", folder / "o1/recipe.yaml", "--out", folder / "o3", *words)
    assert again.returncode == 0, again.stderr
    assert report(folder, "o3")["output"] == report(folder, "o1")["output"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("qat.loss=focal", "expected module:function"),
        ("qat.loss=not_there:focal", "add --trust-code"),
        ("qat.distill={blocks: -1}", "qat.distill.blocks"),
        ("qat.augment={colour: 2}", "qat.augment.colour"),
        ("qat.augment={mixup: 0.5, cutmix: 0.75}", "1.25 of the images together, expected at most"),
        ("qat.precision=half", "qat.precision"),
    ],
)
def test_what_is_refused_before_any_work(folder, setting, said):
    done = train(folder, "no", setting)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert said in done.stderr and not (folder / "no").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("qat.distill={weight: 1}", "qat.loss none"),
        ("qat.label_smoothing=0.1", "belongs to cross entropy"),
        ("qat.augment={mixup: 0.5}", "two labels each"),
    ],
)
def test_what_a_loss_of_ones_own_does_not_go_with(folder, setting, said):
    (folder / "my_loss.py").write_text(LOSSES)
    done = train(folder, "no", "qat.loss=my_loss:half", setting)
    assert done.returncode == 2 and said in done.stderr, done.stderr


@pytest.mark.slow
def test_oscillating_weights_are_reported_and_frozen(folder):
    settings = ("qat.oscillation={dampen: 0.001, freeze: 0.02, momentum: 0.05}", "qat.ema=0.9")
    done = train(folder, "f", *settings)
    assert done.returncode == 0, done.stderr
    result = report(folder, "f")
    training, parity = result["data"]["training"], result["parity"]
    assert 0 < training["oscillating"] < 1 and 0 < training["frozen"] < 1
    last = training["epochs"][-1]
    assert (last["oscillating"], last["frozen"]) == (training["oscillating"], training["frozen"])
    assert "frozen" not in training["epochs"][0] and parity["share_off"] == 0
    said = f"{training['frozen']:.2%} were frozen"
    for name in ("report.html", "report.md"):
        assert said in (folder / "f" / name).read_text(), name
    assert said in " ".join(done.stdout.split())
    assert f"{training['frozen']:.2%} frozen" in (folder / "f" / "report.html").read_text()
    again = qtool("qat", "--recipe", folder / "f/recipe.yaml", "--out", folder / "f2")
    assert again.returncode == 0, again.stderr
    assert report(folder, "f2")["output"] == result["output"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["qat.oscillation={}", "qat.quantizer=pact"], "expected lsq, lsq_plus, ewgs or ste"),
        (["qat.oscillation={}", "bits.weights=8"], "found no weights of 4 bits or fewer"),
        (["qat.oscillation={damp: 1}"], "qat.oscillation"),
        (["qat.oscillation.freeze=0"], "qat.oscillation.freeze"),
        (["qat.ema=1"], "qat.ema"),
    ],
)
def test_oscillations_are_refused_where_they_make_no_sense(folder, settings, said):
    done = train(folder, "no", *settings)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert said in done.stderr and not (folder / "no").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["qat.batchnorm=frozen"], "qat.batchnorm: frozen: found no BatchNorm behind a layer"),
        (["qat.distill.temperature=4"], "qat.distill.temperature: the output of shape ['N', 4, 8"),
    ],
)
def test_what_a_network_has_nothing_for_is_refused(folder, settings, said):
    """One convolution without BatchNorm, whose outputs are no classes."""
    net = Net(opset=17)
    net.output(net.conv(net.input("x", "N", 1, 8, 8), 1, 4, name="stem", out="y"))
    onnx.save(net.proto(), folder / "plain.onnx")
    images = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "bare.npz", x=images)
    data = "calibrate: {arrays: bare.npz}, qat: {allow_overlap: true}"
    (folder / "plain.yaml").write_text(f"{{model: plain.onnx, {data}}}")
    words = [word for setting in settings for word in ("--set", setting)]
    done = qtool("qat", "--recipe", folder / "plain.yaml", "--out", folder / "no", *words)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (folder / "no").exists()


def test_a_temperature_of_a_teacher_without_a_share_is_refused(folder):
    done = train(folder, "no", "qat.distill={weight: 0, blocks: 0.1, temperature: 4}")
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "qat.distill.temperature: has no effect where the float network's output" in done.stderr


def test_images_that_have_no_partner_are_refused(folder):
    done = train(folder, "no", "qat.batch=1", "qat.augment={mixup: 1}")
    assert done.returncode == 2 and "a batch of 1 for 1 processes" in done.stderr, done.stderr
    assert "qat.augment" in done.stderr and not (folder / "no").exists()


@pytest.mark.slow
def test_training_that_does_not_go_on_says_so(folder):
    def notes() -> str:
        return str([stage["notes"] for stage in report(folder, "anew")["stages"]])

    for lr, anew in ((0.01, False), (0.01, False), (0.02, True)):
        done = train(folder, "anew", "qat.epochs=1", f"qat.lr={lr}")
        assert done.returncode == 0, done.stderr
        assert ("training began anew" in notes()) == anew


def test_colour_needs_the_pixels_behind_the_inputs(folder):
    done = train(folder, "no", "qat.augment={colour: 0.2}")
    assert done.returncode == 2 and "preprocess that made them" in done.stderr, done.stderr
    assert not (folder / "no").exists()


@pytest.mark.slow
def test_images_train_with_colours_changed(folder):
    rng = np.random.default_rng(0)
    for k in range(4):
        (folder / "pictures" / str(k)).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 80, (8, 8), np.uint8)
            pixels[2 * k : 2 * k + 2] += 150
            Image.fromarray(pixels).save(folder / "pictures" / str(k) / f"{i}.png")
    (folder / "images.yaml").write_text(
        """
        model: net.onnx
        calibrate:
          images: pictures
          take: {every: 2, offset: 1}
          preprocess: {color: gray, mean: [0.3], std: [0.2]}
        evaluate: {images: pictures, take: {every: 2}}
        qat:
          images: pictures
          take: {every: 2, offset: 1}
          epochs: 2
          batch: 16
          augment: {crop: 1, colour: 0.3}
        """
    )
    words = ("qat", "--recipe", folder / "images.yaml", "--out")
    others = {"c3": "colour=0", "c4": "mixup=0.4", "c5": "cutmix=0.4"}
    for out, more in {"c1": None, "c2": None, **others}.items():
        setting = () if more is None else ("--set", f"qat.augment.{more}")
        done = qtool(*words, folder / out, *setting)
        assert done.returncode == 0, done.stderr
    result = [report(folder, f"c{k}")["data"]["training"] for k in range(1, 6)]
    assert result[0] == result[1] and result[0]["float_score"] > 0
    losses = [training["epochs"][1]["loss"] for training in result[1:]]
    assert len(set(losses)) == 4


@pytest.mark.slow
def test_tensorboard_changes_nothing_else(folder):
    settings = ("qat.epochs=2", "qat.tensorboard=true")
    assert train(folder, "t1", "qat.epochs=2").returncode == 0
    before = report(folder, "t1")
    done = train(folder, "t1", *settings)  # goes on from the finished training
    assert done.returncode == 0, done.stderr
    assert report(folder, "t1")["data"] == before["data"]
    (events,) = (folder / "t1" / "tensorboard").glob("qat-*/events.out.tfevents.*")
    assert b"loss/epoch" in events.read_bytes() and b"score" in events.read_bytes()


def test_tensorboard_is_missed_before_any_work(folder, monkeypatch):
    monkeypatch.setattr("qtool.pipeline.training.checks.find_spec", lambda name: None)
    words = ["qat", "--recipe", folder / "r.yaml", "--out", folder / "no"]
    words += ["--set", "qat.tensorboard=true"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 2 and "pip install 'qtool[tensorboard]'" in done.stderr
    assert not (folder / "no").exists()


def test_bfloat16_with_a_teacher_and_blocks(folder):
    done = train(
        folder,
        "b",
        "qat.epochs=2",
        "qat.precision=bfloat16",
        "qat.distill={weight: 0.5, blocks: 0.1}",
    )
    assert done.returncode == 0, done.stderr
    result = report(folder, "b")
    assert result["parity"]["share_off"] == 0
    assert result["accuracy"]["simulated"] == result["accuracy"]["quantized"]
    assert result["data"]["training"]["epochs"][1]["loss"] > 0
