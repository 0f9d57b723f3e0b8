"""The JSON schema: valid itself, and of one mind with load_recipe."""

import re
from pathlib import Path

import jsonschema
import pytest

from qtool.data.config import DataSection
from qtool.data.reader_options import Wav
from qtool.errors import RecipeError
from qtool.recipe.json_schema import recipe_schema
from qtool.recipe.loader import load_recipe
from qtool.recipe.model import Recipe
from qtool.recipe.yaml_loader import emit, parse

ROOT = Path(__file__).parents[3]

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
    ({"model": {"onnx": "net.onnx", "input": {"x": {"shape": ["N"]}}}}, True),
    ({"model": {"onnx": "net.onnx", "input": {"x": {"shape": ["N"], "dtype": "int64"}}}}, False),
    ({"model": {"onnx": "net.onnx", "input": {"h": {"shape": [2, "N"], "batch_axis": 1}}}}, True),
    ({"model": {"onnx": "net.onnx", "input": {"h": {"batch_axis": "none"}}}}, True),
    ({"model": {"onnx": "net.onnx", "input": {"h": {"batch_axis": -1}}}}, False),
    ({"model": {"onnx": "net.onnx", "input": {"sr": {"constant": 16000}}}}, True),
    ({"model": {"onnx": "net.onnx", "input": {"sr": {"constant": [[1, 0], [1, 1]]}}}}, True),
    ({"model": {"onnx": "net.onnx", "input": {"sr": {"constant": "16 kHz"}}}}, False),
    ({"calibrate": {"arrays": "train", "loop": {"stateN": "state"}}}, True),
    ({"calibrate": {"arrays": "train", "loop": "state"}}, False),
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
    ({"bits": {"scale": "power_of_two"}}, True),
    ({"bits": {"scale": {"fixed_point": {"width": 12}}}}, True),
    ({"bits": {"scale": {"fixed_point": {"width": 99}}}}, False),
    ({"bits": {"scale": "round"}}, False),
    ({"bits": {"scheme": "kmeans", "weights": 4}}, True),
    ({"bits": {"scheme": "round", "weights": 4}}, False),
    ({"bits": {"layers": {"conv": 8}}}, False),
    ({"rewrite": ["fold_batchnorm"]}, True),
    ({"rewrite": ["x"]}, False),
    ({"ptq": []}, True),
    ({"ptq": ["x"]}, False),
    ({"gates": {"min_speedup": 1.5}}, True),
    ({"gates": {"min_speedup": 0}}, False),
    ({"output": {"opset": 21}}, True),
    ({"output": {"opset": 13}}, False),
    ({"qat": {}}, True),
    ({"other": 1}, False),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "train").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_schema_is_valid():
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


def references(node) -> set[str]:
    """Return every ``$ref`` below a node of the schema."""
    if isinstance(node, list):
        return {ref for item in node for ref in references(item)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    return own | references(list(node.values()))


def test_every_reference_resolves_and_every_definition_is_used():
    schema = recipe_schema()
    assert references(schema) == {f"#/$defs/{name}" for name in schema["$defs"]}


def as_recipe(block: dict) -> dict:
    """Complete a YAML block of the documents to a recipe.

    Keys of a recipe stand at its top; else keys of a data section stand under ``calibrate``; else
    keys of the ``wav`` reader stand there. A block that fits none of them is an error.
    """
    if set(block) <= set(Recipe.model_fields):
        return GOOD | block
    if set(block) <= set(DataSection.model_fields):
        return GOOD | {"calibrate": block}
    assert set(block) <= set(Wav.model_fields), f"{list(block)} fits no part of a recipe"
    return GOOD | {"calibrate": {"wav": {"path": "sounds", **block}}}


def documents() -> dict[str, dict]:
    """Return every recipe of the repository and every YAML block of its documents."""
    files = {str(p.relative_to(ROOT)): p.read_text() for p in ROOT.glob("recipes/**/*.y*ml")}
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))):
        text = page.read_text()
        for block in re.finditer(r"^```ya?ml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            files[f"{page.name}:{text.count(chr(10), 0, block.start()) + 1}"] = block[1]
    return {name: as_recipe(parse(text, name).data) for name, text in files.items()}


def test_the_repository_has_recipes_and_documents_with_yaml():
    names = documents()
    assert len(names) >= 9
    assert any(name.startswith("recipes/") for name in names)


@pytest.mark.parametrize("name", documents())
def test_recipes_and_documents_fit_the_schema(name):
    jsonschema.Draft202012Validator(recipe_schema()).validate(documents()[name])


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
