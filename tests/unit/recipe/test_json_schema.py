"""The JSON schema: valid itself, and of one mind with load_recipe."""

import jsonschema
import pytest

from qtool.errors import RecipeError
from qtool.recipe.json_schema import recipe_schema
from qtool.recipe.loader import load_recipe
from qtool.recipe.registry import KINDS
from qtool.recipe.yaml_loader import emit

GOOD = {"model": "net.onnx", "calibrate": {"images": "train"}}
CHANGES = [
    # (changes, whether it is a recipe)
    ({}, True),
    ({"target": "onnxruntime-cpu"}, True),
    ({"target": "gpu"}, False),
    ({"model": {"torch": "nets:one", "input": {"x": ["N", 3]}}}, True),
    ({"model": {"torch": "nets:one", "input": {"x": {"shape": ["N"], "dtype": "int64"}}}}, True),
    ({"model": {"torch": "nets:one", "input": {"x": {"shape": ["N"], "dtype": "int"}}}}, False),
    ({"model": {"torch": "nets:one", "input": {"x": []}}}, False),
    ({"model": {"input": {"x": ["N"]}}}, False),
    ({"model": {"onnx": "net.onnx"}}, True),
    ({"model": {"onnx": "net.onnx", "input": {"x": ["N", 128]}}}, True),
    ({"model": {"onnx": "net.onnx", "input": {"x": []}}}, False),
    ({"model": {"onnx": "net.onnx", "input": {"x": {"shape": ["N"]}}}}, False),
    ({"model": {"onnx": "net.onnx", "torch": "nets:one"}}, False),
    ({"calibrate": {"images": "train", "method": "mse"}}, True),
    ({"calibrate": {"images": "train", "method": {"percentile": {"q": 0.99}}}}, True),
    ({"calibrate": {"images": "train", "method": {"percentile": {"q": 9}}}}, False),
    ({"calibrate": {"images": "train", "method": {"percentile": {"x": 1}}}}, False),
    ({"calibrate": {"images": "train", "method": "best"}}, False),
    ({"calibrate": {"images": "train", "preprocess": {"resize": [3, 4]}}}, True),
    ({"calibrate": {"images": "train", "preprocess": {"resize": "x"}}}, False),
    ({"calibrate": {"arrays": "train"}}, True),
    ({"calibrate": {"arrays": {"path": "train"}}}, True),
    ({"calibrate": {"arrays": "train", "images": "train"}}, False),
    ({"calibrate": {}}, False),
    ({"evaluate": {"images": "train", "metric": "top5"}}, True),
    ({"evaluate": {"images": "train", "metric": "top9"}}, False),
    ({"bits": {"weights": "float", "layers": {"first": 8, "op:Conv": {"weights": 8}}}}, True),
    ({"bits": {"weights": 17}}, False),
    ({"bits": {"layers": {"conv": 8}}}, False),
    ({"rewrite": ["fold_batchnorm"]}, True),
    ({"rewrite": ["x"]}, False),
    ({"ptq": []}, True),
    ({"ptq": ["x"]}, False),
    ({"gates": {"min_speedup": 1.5}}, True),
    ({"gates": {"min_speedup": 0}}, False),
    ({"output": {"opset": 21}}, True),
    ({"output": {"opset": 13}}, False),
    ({"qat": {}}, False),
    ({"other": 1}, False),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "train").mkdir()
    monkeypatch.setitem(KINDS, "ptq", dict)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_schema_is_valid():
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize(("changes", "good"), CHANGES)
def test_schema_and_loader_agree(folder, changes, good):
    recipe = GOOD | changes
    validator = jsonschema.Draft202012Validator(recipe_schema())
    assert validator.is_valid(recipe) == good
    (folder / "r.yaml").write_text(emit(recipe))
    if good:
        load_recipe("r.yaml")
    else:
        with pytest.raises(RecipeError):
            load_recipe("r.yaml")


def test_a_dumped_recipe_fits_the_schema(folder):
    (folder / "r.yaml").write_text(emit(GOOD))
    dumped = load_recipe("r.yaml").model_dump(mode="json", exclude_none=True)
    jsonschema.Draft202012Validator(recipe_schema()).validate(dumped)


def test_every_key_has_a_description():
    schema = recipe_schema()
    for part in ("Bits", "Gates", "Output", "Calibrate", "Evaluate"):
        for key, value in schema["$defs"][part]["properties"].items():
            assert value.get("description"), f"{part}.{key}"
