"""The Python API: the example of the docs, equal to the pipeline, wrong arguments."""

import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from interpreters import ROOT, fresh
from models import Net
from torch import nn

import qtool
from qtool.errors import DataError, ModelError, RecipeError, UnsupportedError


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.S)


def test_batches_of_different_sizes_are_refused(tmp_path):
    net = Net()
    x = net.input("x", "N", "T", 8)
    net.output(net.add("MatMul", x, net.weight(8, 4), out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    batches = [np.zeros((2, t, 8), np.float32) for t in (5, 7)]
    with pytest.raises(DataError) as error:
        qtool.quantize(model, batches)
    assert "leaves T open" in str(error.value) and "batch 2" in str(error.value)


def test_a_network_that_takes_one_sample_gets_one_sample(tmp_path):
    """Its tracer wrote a batch of 1 into a Reshape."""
    net = Net(opset=17)
    x = net.add("Reshape", net.input("x", "N", 6, 8), net.const(np.array([1, -1, 8])))
    x = net.add("ReduceMean", net.add("Relu", net.add("MatMul", x, net.weight(8, 16))), axes=[1])
    net.output(net.add("MatMul", x, net.weight(16, 3), out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    rows = np.random.default_rng(0).normal(size=(16, 6, 8)).astype(np.float32)
    plan = qtool.quantize(qtool.load(tmp_path / "net.onnx"), [rows], threads=1)
    assert any("samples are computed one by one" in note for note in plan.notes)
    scale = plan.quantization.qparams("x").scale
    assert 255 * float(scale) == pytest.approx(np.ptp(rows), rel=0.1)


def test_the_example_of_training_runs_in_a_fresh_process(tmp_path):
    _, code, _ = examples()
    done = fresh(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"loss ([\d.]+)", done.stdout)[1]) < 1.35  # ln 4 = 1.386 is chance
    assert (tmp_path / "net_w3a4.onnx").is_file()


def test_the_example_of_the_docs_runs_in_a_fresh_process(tmp_path):
    code, *_ = examples()
    assert len(code.splitlines()) <= 15
    done = fresh(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch and ONNX agree" in done.stdout
    assert float(re.search(r"largest error ([\d.]+)", done.stdout)[1]) < 0.1
    assert (tmp_path / "net_int8.onnx").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == ["net_int8.onnx"]


def test_the_example_of_whole_runs_runs_in_a_fresh_process(tmp_path):
    code = examples()[2]
    done = fresh(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'QLinearConv': 1" in done.stdout and done.stdout.strip().endswith("True")


LIGHT = """
import sys, qtool
heavy = {"torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "qtool.api", "qtool.loading"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import qtool.loading.onnx_loader, qtool.emitters
from qtool.loading import load_model
assert callable(qtool.load) and callable(qtool.emit) and callable(load_model)
assert {f.__module__.rpartition(".")[0] for f in (qtool.load, qtool.emit)} == {"qtool.api"}
try:
    qtool.lode
except AttributeError as error:
    print(error)
"""


def test_importing_is_light_and_functions_keep_their_names(tmp_path):
    done = fresh(LIGHT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'qtool' has no attribute 'lode'\n"


class Two(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, image, weight):
        x = torch.relu(self.norm(self.conv(image)))
        return self.fc(x.mean((2, 3))), x * weight


IMAGE, WEIGHT = torch.randn(4, 2, 6, 6), torch.rand(4, 1, 6, 6)


@pytest.fixture(scope="module")
def model():
    return qtool.load(Two(), (IMAGE, WEIGHT))


@pytest.fixture(scope="module")
def plan(model):
    return qtool.quantize(model, [(IMAGE, WEIGHT, "a label")], method="minmax")


def test_a_module_is_loaded_and_left_as_it_was(model):
    assert list(model.inputs) == ["image", "weight"]
    assert model.outputs == ("output_0", "output_1")
    assert model.name == "Two" and model.path.is_file()
    module = Two().train()
    module.conv.eval()
    qtool.load(module, {"image": IMAGE, "weight": WEIGHT})
    assert module.training and module.norm.training and not module.conv.training


def test_the_simulation_is_a_module_and_equals_the_file(model, plan, tmp_path):
    module = qtool.simulate(model, plan)
    assert isinstance(module, nn.Module) and not list(module.parameters())
    by_position = module(IMAGE, WEIGHT)
    by_name = module(weight=WEIGHT.numpy(), image=IMAGE)
    mixed = module(IMAGE, weight=WEIGHT)
    path = qtool.emit(model, plan, tmp_path / "out" / "two.onnx")
    found = ort.InferenceSession(path).run(None, {"image": IMAGE.numpy(), "weight": WEIGHT.numpy()})
    for k in range(2):
        assert torch.equal(by_position[k], by_name[k]) and torch.equal(by_position[k], mixed[k])
        assert not by_position[k].requires_grad and not by_position[k].is_inference()
        step = float(np.ptp(found[k])) / 255
        # One code: the simulation rounds floats, the file integers.
        np.testing.assert_allclose(by_position[k].numpy(), found[k], atol=1.01 * step)
    (by_position[0] * nn.Parameter(torch.ones(1))).sum().backward()


def test_quantizing_leaves_the_model_free_for_another_plan(model, plan):
    other = qtool.quantize(model, [(IMAGE, WEIGHT)], bits={"layers": {"op:Gemm": "float"}})
    assert "/fc/Gemm" in plan.quantization.sites
    assert "/fc/Gemm" not in other.quantization.sites
    again = qtool.quantize(model, iter([{"image": IMAGE, "weight": WEIGHT}]), method="minmax")
    assert set(again.quantization.codes) == set(plan.quantization.codes)
    for name, codes in plan.quantization.codes.items():
        assert np.array_equal(again.quantization.codes[name], codes)


def _without_recipe(path):
    """Return a file's bytes without the digest of the recipe, which only a run has."""
    model = onnx.load(path)
    kept = [e for e in model.metadata_props if e.key != "qtool.recipe_sha256"]
    assert {"qtool.version", "qtool.model_sha256"} <= {e.key for e in kept}
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model.SerializeToString(deterministic=True)


def test_the_file_is_the_one_of_the_pipeline(tmp_path, monkeypatch):
    from qtool.pipeline.run import run_ptq
    from qtool.recipe.loader import load_recipe

    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    x = torch.randn(24, 2, 6, 6)
    np.savez(tmp_path / "data.npz", x=x.numpy())
    monkeypatch.chdir(tmp_path)
    made = qtool.load(net, {"x": x})
    (tmp_path / "net.onnx").write_bytes(made.path.read_bytes())
    (tmp_path / "r.yaml").write_text(
        "model: net.onnx\ncalibrate: {arrays: data.npz, take: {every: 2}}\n"
        "evaluate: {arrays: data.npz, take: {every: 2, offset: 1}, metric: cosine}\n"
    )
    run_ptq(load_recipe("r.yaml"), tmp_path / "run")
    model = qtool.load("net.onnx")
    plan = qtool.quantize(model, {"arrays": "data.npz", "take": {"every": 2}})
    path = qtool.emit(model, plan, "mine.onnx")
    assert _without_recipe(path) == _without_recipe(tmp_path / "run" / "model.onnx")
    plan.save(tmp_path / "plan")
    assert (tmp_path / "plan" / "plan.json").is_file()


@pytest.mark.parametrize(
    ("call", "kind", "expected"),
    [
        (lambda m, p: qtool.load("gone.onnx"), ModelError, "no such file"),
        (lambda m, p: qtool.load("gone.pt2"), RecipeError, "then pass trust_code=True"),
        (lambda m, p: qtool.load("gone.pt2", trust_code=True), ModelError, "no such file"),
        (lambda m, p: qtool.load({"torch": "a:b", "input": {"x": ["N"]}}), RecipeError, "trust_c"),
        (lambda m, p: qtool.load({"torch": "a:b", "inputs": {}}), RecipeError, 'mean "input"?'),
        (lambda m, p: qtool.load(3), ModelError, "found a int, expected a path"),
        (lambda m, p: qtool.load(Two()), ModelError, "a torch module needs `inputs`"),
        (lambda m, p: qtool.load(Two(), "x"), ModelError, "found str, expected example tensors"),
        (lambda m, p: qtool.load("a.onnx", IMAGE), ModelError, "only a torch module needs"),
        (lambda m, p: qtool.quantize(m, []), DataError, "the data has no batch"),
        (lambda m, p: qtool.quantize(m, [IMAGE]), DataError, "nothing for the input weight"),
        (lambda m, p: qtool.quantize(m, [(WEIGHT, IMAGE)]), DataError, "float32 [4, 1, 6, 6]"),
        (lambda m, p: qtool.quantize(m, [{"image": IMAGE}]), DataError, "for the input weight"),
        (
            lambda m, p: qtool.quantize(m, [(IMAGE.to(torch.uint8), WEIGHT)]),
            DataError,
            "uint8, which looks like pixels",
        ),
        (
            lambda m, p: qtool.quantize(m, [(IMAGE, WEIGHT + 1j)]),
            DataError,
            "convert it to float32",
        ),
        (lambda m, p: qtool.quantize(m, [], method="mes"), RecipeError, 'did you mean "mse"?'),
        (lambda m, p: qtool.quantize(m, [], bits={"weights": 17}), RecipeError, "1 to 16 or"),
        (lambda m, p: qtool.quantize(m, [], target="tpu"), RecipeError, "target: found"),
        (lambda m, p: qtool.quantize(m, {"images": "gone"}), RecipeError, 'nothing at "'),
        (
            lambda m, p: qtool.quantize(m, [(IMAGE, WEIGHT)], bits={"layers": {"name:x": 8}}),
            RecipeError,
            "matches no node",
        ),
        (
            lambda m, p: qtool.quantize(
                m, [(IMAGE, WEIGHT)], bits={"weights": "float", "activations": "float"}
            ),
            UnsupportedError,
            "there is nothing to quantize",
        ),
        (lambda m, p: qtool.simulate(m, p)(IMAGE), DataError, "found 1 by position as inputs"),
        (
            lambda m, p: qtool.simulate(m, p)(IMAGE, imag=WEIGHT),
            DataError,
            "and imag as inputs of the network, expected",
        ),
        (lambda m, p: qtool.emit(m, p, "."), RecipeError, "is a folder; expected a file name"),
    ],
)
def test_wrong_arguments(model, plan, call, kind, expected):
    with pytest.raises(kind) as caught:
        call(model, plan)
    assert expected in str(caught.value)


def test_a_plan_belongs_to_its_model(plan):
    other = qtool.load(Two(), (IMAGE, WEIGHT))
    for call in (qtool.simulate, lambda m, p: qtool.emit(m, p, "x.onnx")):
        with pytest.raises(RecipeError, match="the plan was made for Two as another"):
            call(other, plan)


def test_the_package_lists_its_public_names():
    assert {"load", "quantize", "simulate", "emit", "Model", "Plan"} <= set(dir(qtool))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda m, p: qtool.quantize("net.onnx", [np.zeros((1, 2))]), ModelError, "found a str as"),
        (lambda m, p: qtool.quantize(m, 7), DataError, "found a int as the data"),
        (lambda m, p: qtool.quantize(m, "train"), DataError, "found a str as the data"),
        (lambda m, p: qtool.quantize(m, [], methd="mse"), RecipeError, 'did you mean "method"'),
        (lambda m, p: qtool.quantize(m, [], bits=8), RecipeError, "bits"),
        (lambda m, p: qtool.simulate(m, None), RecipeError, "found a NoneType as the plan"),
        (lambda m, p: qtool.simulate(p, p), ModelError, "found a Plan as the model"),
        (lambda m, p: qtool.emit(m, p, 3), RecipeError, "found a int as the path"),
        (lambda m, p: qtool.load(3), ModelError, "found a int"),
    ],
)
def test_arguments_of_another_type_are_errors_of_the_user(call, kind, text, tmp_path):
    net = Net(opset=21)
    net.output(net.conv(net.input("x", "N", 3, 8, 8), 3, 4, out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    plan = qtool.quantize(model, [images])
    with pytest.raises(kind, match=text):
        call(model, plan)


def test_post_training_steps_run_in_python_too(tmp_path):
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    net.output(net.conv(x, 4, 4, out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    images = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    plan = qtool.quantize(
        model,
        (images[k : k + 8] for k in range(0, 40, 8)),
        ptq=["bias_correction"],
        bits={"weights": 3},
    )
    assert any("biases of 2 layers corrected on 30 samples" in note for note in plan.notes)
