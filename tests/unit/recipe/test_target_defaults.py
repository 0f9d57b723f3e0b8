"""Values of a recipe that its target chooses, and requests that the target cannot fulfil."""

import pytest

from qtool.errors import RecipeError
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.presets import preset_names
from qtool.recipe.target_defaults import add_default_steps, apply_target_defaults
from qtool.targets.loader import load_target


def recipe(folder, target: str, **parts):
    data = {"model": "net.onnx", "calibrate": {"images": "train"}, "target": target, **parts}
    return recipe_from_keywords(data, "here", folder, files=False)


OWN = {
    "onnxruntime-cpu": (8, 8, "channel", "qdq", 21),
    "npu-u8": (8, 8, "tensor", "qdq", 21),
    "npu-u16": (8, 16, "tensor", "qdq", 21),
    "fpga": (8, 8, "channel", "qonnx", 21),
}


@pytest.mark.parametrize("target", OWN)
def test_a_target_answers_what_the_recipe_leaves_open(target, tmp_path):
    resolved = apply_target_defaults(recipe(tmp_path, target), load_target(target))
    bits, output = resolved.bits, resolved.output
    values = (bits.weights, bits.activations, bits.granularity, output.format, output.opset)
    assert values == OWN[target]
    again = recipe(tmp_path, target, bits={"weights": 8, "activations": 8})
    assert apply_target_defaults(again, load_target(target)).bits.activations == 8


def test_resolved_recipes_stay_as_they_are(tmp_path):
    target = load_target("npu-u16")
    resolved = apply_target_defaults(recipe(tmp_path, "npu-u16"), target)
    assert apply_target_defaults(resolved, target) == resolved
    assert "activations: 16" in resolved.dump()


BAD = [
    (
        "openvino",
        {"output": {"format": "qonnx"}},
        "here: output.format: qonnx, but target openvino",
    ),
    ("openvino", {"output": {"opset": 25}}, "here: output.opset: 25, but target openvino reads"),
    ("npu-u8", {"bits": {"granularity": "channel"}}, "here: bits.granularity: channel, but target"),
    ("tensorrt", {"bits": {"granularity": {"block": 32}}}, "block, but target tensorrt takes"),
    ("fpga", {"output": {"io": "quantized"}}, "here: output.io: a qonnx file computes on values"),
    (
        "onnxruntime-cpu",
        {"output": {"format": "qonnx"}, "bits": {"activations": "dynamic"}},
        "here: output.format: qonnx holds grids that are fixed beforehand",
    ),
]


@pytest.mark.parametrize(("target", "parts", "complaint"), BAD, ids=range(len(BAD)))
def test_what_a_target_cannot_do_is_refused(target, parts, complaint, tmp_path):
    with pytest.raises(RecipeError) as caught:
        apply_target_defaults(recipe(tmp_path, target, **parts), load_target(target))
    assert str(caught.value).startswith(complaint) or complaint in str(caught.value)
    assert caught.value.exit_code == 2


def steps(folder, samples=100, scale_kind="float", **parts) -> list[str]:
    target = load_target("onnxruntime-cpu")
    resolved = apply_target_defaults(recipe(folder, "onnxruntime-cpu", **parts), target)
    return [choice.name for choice in add_default_steps(resolved, scale_kind, samples).ptq]


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({}, ["gptq"]),
        ({"bits": {"weights": 4}}, ["gptq", "brecq"]),
        ({"bits": {"layers": {"op:Conv": 4}}}, ["gptq", "brecq"]),
        ({"bits": {"layers": {"op:Conv": {"activations": 4}}}}, ["gptq"]),
        ({"bits": {"layers": {"op:Conv": "float"}}}, ["gptq"]),
        ({"bits": {"weights": "float", "activations": "float"}}, []),
        ({"bits": {"weights": 4, "activations": "float"}}, []),
        ({"bits": {"weights": 4, "activations": "dynamic"}}, []),
        ({"bits": {"weights": 1}}, []),
        ({"bits": {"weights": 4, "scheme": "kmeans"}}, []),
        ({"bits": {"weights": 4}, "ptq": []}, []),
        ({"bits": {"weights": 4}, "ptq": ["bias_correction"]}, ["bias_correction"]),
        ({"ptq": "fast"}, ["gptq", "brecq"]),
    ],
)
def test_the_default_repairs_integer_weights(parts, names, tmp_path):
    assert steps(tmp_path, **parts) == names


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({"bits": {"weights": 4}}, None),
        ({"bits": {"weights": 4, "activations": 4}}, ("equalize_activations",)),
        ({"bits": {"layers": {"op:Conv": {"activations": 4}}}}, ("equalize_activations",)),
        ({"bits": {"activations": 4}, "ptq": []}, None),
        ({"bits": {"activations": 4}, "ptq": "best"}, ("equalize_activations",)),
        ({"bits": {"activations": 4}, "rewrite": ["equalize"]}, ("equalize",)),
    ],
)
def test_narrow_activations_are_equalized_first(parts, names, tmp_path):
    target = load_target("onnxruntime-cpu")
    resolved = apply_target_defaults(recipe(tmp_path, "onnxruntime-cpu", **parts), target)
    assert add_default_steps(resolved, "float", 100).rewrite == names
    assert add_default_steps(resolved, "float", 31).rewrite in (None, ("equalize",))


@pytest.mark.parametrize(
    ("parts", "limit"),
    [
        ({}, 0.01),
        ({"bits": {"weights": 4}}, 0.01),
        ({"ptq": ["bias_correction"]}, 0.01),
        ({"bits": {"activations": 4}}, None),
        ({"bits": {"layers": {"op:Conv": {"activations": 4}}}}, None),
        ({"ptq": []}, None),
        ({"calibrate": {"images": "train", "method": "mse"}}, None),
        ({"calibrate": {"images": "train", "auto_above": 0.5}}, 0.5),
        ({"calibrate": {"images": "train", "method": "minmax", "auto_above": 0.5}}, 0.5),
    ],
)
def test_ranges_by_the_default_method_are_checked(parts, limit, tmp_path):
    target = load_target("onnxruntime-cpu")
    resolved = apply_target_defaults(recipe(tmp_path, "onnxruntime-cpu", **parts), target)
    assert add_default_steps(resolved, "float", 100).calibrate.auto_above == limit


def test_the_default_needs_samples_and_free_scales(tmp_path):
    narrow = {"bits": {"weights": 4}}
    assert steps(tmp_path, samples=31, **narrow) == []
    assert steps(tmp_path, scale_kind="power_of_two", **narrow) == []


def test_the_steps_of_a_preset_are_written_out(tmp_path):
    text = recipe(tmp_path, "onnxruntime-cpu", ptq="fast").dump()
    assert "ptq:\n- gptq\n- brecq:\n" in text and "activations: below_8" in text


def test_a_preset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r'ptq: found "fats", expected a list of steps, or a'):
        recipe(tmp_path, "onnxruntime-cpu", ptq="fats")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_list_of_steps_that_are_there(name, tmp_path):
    data = {"model": "net.onnx", "calibrate": {"images": "train"}, "ptq": name}
    steps = recipe_from_keywords(data, "here", tmp_path, files=False).ptq
    assert steps if name != "n2d2" else steps == ()


@pytest.mark.parametrize(
    ("own", "rewrite", "method"),
    [
        ({}, ("normalize_weights",), "mse"),
        ({"rewrite": ["equalize"]}, ("equalize",), "mse"),
        (
            {"calibrate": {"images": "train", "method": {"entropy": {"form": "n2d2"}}}},
            ("normalize_weights",),
            "entropy",
        ),
    ],
)
def test_a_preset_adds_the_keys_that_the_recipe_lacks(own, rewrite, method, tmp_path):
    made = recipe(tmp_path, "onnxruntime-cpu", ptq="n2d2", **own)
    assert made.rewrite == rewrite and made.calibrate.method.name == method and made.ptq == ()
