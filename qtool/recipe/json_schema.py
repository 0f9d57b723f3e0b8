"""The recipe's JSON schema, for editors: pydantic's, with the names and short forms added."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from qtool.data import Reader
from qtool.recipe.entry_options import options_of
from qtool.recipe.model import ActivationWidth, Recipe
from qtool.recipe.presets import preset_names
from qtool.recipe.registry import ITEM, KINDS, NAME, Kind, Place

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

_REF = "#/$defs/"
_TEXT = {"type": "string"}
# What pydantic writes where a name stands: a choice with its options, or a plain text.
_NAMES = ({"$ref": f"{_REF}Choice"}, _TEXT)


def recipe_schema() -> Schema:
    """Return the schema; what it accepts ``load_recipe`` accepts, but for files that must exist."""
    schema = Recipe.model_json_schema()
    parts = schema["$defs"]
    for kind in KINDS.values():
        forms = _forms(kind, parts)
        for place in kind.at:
            if place[-1] == NAME:
                section = _section(schema, place[:-1], parts)
                _require_one(section, kind.table(), optional=place[0] == "qat")
            else:
                _replace_names(_node_at(schema, place, parts), forms)
    _add_short_forms(parts)
    steps = schema["properties"]["ptq"]["anyOf"]
    with_options = [form for form in steps[0]["items"]["anyOf"] if "properties" in form]
    steps += [{"enum": [*preset_names(), "auto"]}, *with_options]
    parts.pop("Choice")  # no reference to it is left
    return {"$schema": DIALECT, **schema, "title": "qtool recipe"}


def _forms(kind: Kind[Any], parts: Schema) -> list[Schema]:
    """Return the schemas of what may stand where a name of this kind does.

    That is a name, ``{name: {option: value}}`` for one that has options, and the kind's
    alternative. Definitions that the options need are added to ``parts``.
    """
    table = kind.table()
    forms: list[Schema] = [{"enum": sorted(table)}] if table else []
    for name, entry in sorted(table.items()):
        if options_of(entry):
            options = TypeAdapter(entry).json_schema(ref_template=f"{_REF}{{model}}")
            parts.update(options.pop("$defs", {}))
            forms.append(
                {
                    "type": "object",
                    "properties": {name: {**options, "additionalProperties": False}},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
    if kind.alternative is not None:
        forms.append({**_TEXT, "pattern": kind.alternative.pattern})
    return forms or [{"not": {}}]


def _node_at(node: Schema, place: Place, parts: Schema) -> Schema:
    """Return the schema of the value at a place of the recipe."""
    for key in place:
        branches = _branches(node, parts)
        if key == ITEM:
            node = next(branch["items"] for branch in branches if "items" in branch)
        else:
            node = next(b["properties"][key] for b in branches if key in b.get("properties", ()))
    return node


def _section(schema: Schema, place: Place, parts: Schema) -> Schema:
    """Return the definition of the section at a place of the recipe."""
    branches = _branches(_node_at(schema, place, parts), parts)
    return next(branch for branch in branches if "properties" in branch)


def _branches(node: Schema, parts: Schema) -> Iterator[Schema]:
    """Yield a node and the alternatives in it, references resolved."""
    for branch in (node, *node.get("anyOf", ())):
        yield parts[branch["$ref"].removeprefix(_REF)] if "$ref" in branch else branch


def _replace_names(node: Schema, forms: list[Schema]) -> None:
    """Put ``forms`` where pydantic wrote that a name stands, in place."""
    branches = node.pop("anyOf", None)
    if branches is None:
        branches = [{key: node.pop(key) for key in ("$ref", "type") if key in node}]
    node["anyOf"] = [
        form for branch in branches for form in (forms if branch in _NAMES else [branch])
    ]


def _require_one(section: Schema, readers: Mapping[str, Reader], optional: bool) -> None:
    """Require exactly one reader as a key of a data section, and add short forms, in place.

    Where it is optional, the samples of another section stand in for absent ones.
    """
    named = [{"required": [name]} for name in readers]
    section["oneOf"] = [*named, *([{"not": {"anyOf": named}}] if optional else [])]
    for name, reader in readers.items():
        if reader.short_form:
            section["properties"][name]["anyOf"].append(_TEXT)


def _add_short_forms(parts: Schema) -> None:
    """Add the forms that the recipe's validators turn into full ones, in place."""
    width = TypeAdapter(ActivationWidth).json_schema()
    layers = parts["Bits"]["properties"]["layers"]
    layers["additionalProperties"] = {"anyOf": [width, {"$ref": f"{_REF}LayerBits"}]}
    layers["propertyNames"] = {"pattern": "^(first|last|(name|op):.+)$"}
    shape = {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1}
    for model, full in (("TorchModel", "TorchInput"), ("OnnxModel", "ModelInput")):
        forms = {"anyOf": [shape, parts.pop(full)]}
        parts[model]["properties"]["input"]["additionalProperties"] = forms
