"""Values of a recipe that its target chooses, and requests that the target cannot fulfil."""

import pytest

from qtool.errors import RecipeError
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.target_defaults import apply_target_defaults
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
