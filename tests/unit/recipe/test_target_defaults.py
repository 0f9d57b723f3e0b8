"""What a recipe leaves to its target, and what it asks of it in vain."""

import pytest

from qtool.errors import RecipeError
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.target_defaults import settle
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
    found = settle(recipe(tmp_path, target), load_target(target))
    bits, output = found.bits, found.output
    told = (bits.weights, bits.activations, bits.granularity, output.format, output.opset)
    assert told == OWN[target]
    again = recipe(tmp_path, target, bits={"weights": 8, "activations": 8})
    assert settle(again, load_target(target)).bits.activations == 8


def test_settled_recipes_stay_as_they_are(tmp_path):
    target = load_target("npu-u16")
    found = settle(recipe(tmp_path, "npu-u16"), target)
    assert settle(found, target) == found and "activations: 16" in found.dump()


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
        "here: output.format: qonnx holds grids that are known beforehand",
    ),
]


@pytest.mark.parametrize(("target", "parts", "complaint"), BAD, ids=range(len(BAD)))
def test_what_a_target_cannot_do_is_refused(target, parts, complaint, tmp_path):
    with pytest.raises(RecipeError) as caught:
        settle(recipe(tmp_path, target, **parts), load_target(target))
    assert str(caught.value).startswith(complaint) or complaint in str(caught.value)
    assert caught.value.exit_code == 2
