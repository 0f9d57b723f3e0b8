"""The recipe's JSON schema, for editors: pydantic's, with the names and short forms added."""

from typing import Any

from pydantic import TypeAdapter

from qtool.data.config import READER_KEYS
from qtool.recipe.model import ActivationWidth, Recipe
from qtool.recipe.registry import KINDS, options_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
YAML_PATH = {"type": "string", "pattern": r"\.ya?ml$"}


def recipe_schema() -> dict[str, Any]:
    """Return the schema; what it accepts ``load_recipe`` accepts, but for files that must exist."""
    schema = Recipe.model_json_schema()
    parts, keys = schema["$defs"], schema["properties"]
    method = parts["Calibrate"]["properties"]["method"]
    del method["$ref"]
    method |= _choices("calibrators", parts)
    quantizer = parts["Qat"]["properties"]["quantizer"]
    del quantizer["$ref"]
    quantizer |= _choices("quantizers", parts)
    scheme = parts["Bits"]["properties"]["scheme"]
    del scheme["$ref"]
    scheme |= _choices("schemes", parts)
    metric = parts["Evaluate"]["properties"]["metric"]
    own = {"type": "string", "pattern": r"^[^:\s]+:[^:\s]+$"}
    metric["anyOf"] = [{"enum": sorted(KINDS["metrics"]())}, own, {"type": "null"}]
    keys["ptq"]["items"] = _choices("ptq", parts)
    keys["rewrite"]["anyOf"][0]["items"] = {"enum": sorted(KINDS["rewrites"]())}
    del keys["target"]["type"]
    keys["target"]["anyOf"] = [{"enum": sorted(KINDS["targets"]())}, YAML_PATH]
    width = TypeAdapter(ActivationWidth).json_schema()
    layers = parts["Bits"]["properties"]["layers"]
    layers["additionalProperties"] = {"anyOf": [width, {"$ref": "#/$defs/LayerBits"}]}
    layers["propertyNames"] = {"pattern": "^(first|last|(name|op):.+)$"}
    for section in ("Calibrate", "Evaluate", "Qat"):
        for reader in ("arrays", "wav", "python"):
            parts[section]["properties"][reader]["anyOf"].append({"type": "string"})
        parts[section]["oneOf"] = [{"required": [reader]} for reader in READER_KEYS]
    shape = {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1}
    parts["TorchModel"]["properties"]["input"]["additionalProperties"] = {
        "anyOf": [shape, parts.pop("TorchInput")]
    }
    parts["OnnxModel"]["properties"]["input"]["additionalProperties"] = shape
    parts.pop("Choice", None)
    return {"$schema": DIALECT, **schema, "title": "qtool recipe"}


def _choices(kind: str, parts: dict[str, Any]) -> dict[str, Any]:
    """A name of this kind, or ``{name: {option: value}}`` for one that has options."""
    table = KINDS[kind]()
    forms: list[dict[str, Any]] = [{"enum": sorted(table)}] if table else []
    for name, entry in sorted(table.items()):
        if options_of(entry):
            options = TypeAdapter(entry).json_schema(ref_template="#/$defs/{model}")
            parts.update(options.pop("$defs", {}))
            forms.append(
                {
                    "type": "object",
                    "properties": {name: {**options, "additionalProperties": False}},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
    return {"anyOf": forms} if forms else {"not": {}}
