"""The recipe reference as Markdown: keys from the JSON schema, names from the registry."""

from collections.abc import Iterator, Mapping
from typing import Any

from qtool.recipe.json_schema import Schema, recipe_schema
from qtool.recipe.registry import ITEM, KINDS, NAME, Kind, describe

_REF = "#/$defs/"
_BOUNDS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "{} or less",
    "exclusiveMaximum": "below {}",
}
_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}


def recipe_reference() -> str:
    """Return the reference: keys by section, then names by kind."""
    schema = recipe_schema()
    parts = schema["$defs"]
    named = {_dotted(place): kind for kind in KINDS.values() for place in kind.at}
    blocks = [
        "# Recipe reference",
        "Written by `qtool schema --markdown` from this version's schema. Absent keys have the "
        "default; paths are relative to the recipe. [recipe.md](recipe.md) explains them with "
        "examples.",
        _section("", schema, parts, named),
    ]
    for name in _reachable(schema, parts):
        blocks.append(_section(name, parts[name], parts, named))
    blocks += [block for kind in KINDS.values() for block in _kind(kind)]
    return "\n\n".join(blocks) + "\n"


def _dotted(place: tuple[str, ...]) -> str:
    return ".".join(key for key in place if key not in (ITEM, NAME))


def _reachable(schema: Schema, parts: Schema) -> list[str]:
    """Return the definitions in the order in which the recipe's keys refer to them."""
    order: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            reference = node.get("$ref", "")
            name = reference.removeprefix(_REF)
            if reference and name not in order:
                order.append(name)
                visit(parts[name])
            for key, value in node.items():
                if key not in ("$defs", "default"):
                    visit(value)
        elif isinstance(node, list):
            for item in node:
                visit(item)

    visit(schema)
    return order


def _section(name: str, schema: Schema, parts: Schema, named: Mapping[str, Kind[Any]]) -> str:
    """Return one mapping as a heading, its description and a table of keys; "" is the recipe."""
    lines = [f"### {name}" if name else "## Recipe", ""]
    if name and schema.get("description"):
        lines += [_text(schema["description"]), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    required = schema.get("required", ())
    for key, node in schema["properties"].items():
        place = f"{name.lower()}.{key}" if name else key
        default = "required" if key in required else _default(node)
        meaning = node.get("description") or _referred(node, parts).get("description", "")
        cells = (f"`{key}`", _value(node, named.get(place)), default, _text(meaning))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _referred(node: Schema, parts: Schema) -> Schema:
    """Return the definition that a key refers to; nothing where it refers to none."""
    return parts[node["$ref"].removeprefix(_REF)] if "$ref" in node else {}


def _value(node: Schema, kind: Kind[Any] | None) -> str:
    """Return what may stand at a key, in words; names are those of a kind."""
    forms = list(dict.fromkeys(form for form in _forms(node, kind) if form))
    return _cell(" or ".join(forms))


def _forms(node: Schema, kind: Kind[Any] | None) -> Iterator[str]:
    if "$ref" in node:
        name = node["$ref"].removeprefix(_REF)
        yield f"[{name}](#{name.lower()})"
    elif branches := node.get("anyOf") or node.get("oneOf"):
        for branch in branches:
            yield from _forms(branch, kind)
    elif kind is not None and ("enum" in node or "properties" in node or "pattern" in node):
        yield f"one of [{kind.name}](#{kind.name})"
    elif "enum" in node or "const" in node:
        yield _enumerated(node.get("enum") or [node["const"]])
    elif node.get("type") == "array":
        items = " or ".join(dict.fromkeys(_forms(node["items"], kind))) if "items" in node else ""
        yield f"list of {items}" if items else "list"
    elif node.get("type") == "object":
        inner = node.get("additionalProperties")
        values = " or ".join(_forms(inner, kind)) if isinstance(inner, dict) else ""
        yield f"mapping to {values}" if values else "mapping"
    elif node.get("type") == "null":
        return
    elif isinstance(kinds := node.get("type", "string"), list):
        yield " or ".join(_TYPES[each] for each in kinds)
    else:
        bounds = [text.format(f"{node[key]:g}") for key, text in _BOUNDS.items() if key in node]
        words = "path" if node.get("format") == "path" else _TYPES[kinds]
        yield " ".join([words, *([", ".join(bounds)] if bounds else [])])


def _enumerated(values: list[Any]) -> str:
    """Return the values; a run of integers by its ends."""
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) > 3 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        rest = [value for value in values if not isinstance(value, int)]
        return ", ".join([f"{numbers[0]} to {numbers[-1]}", *(f"`{value}`" for value in rest)])
    return ", ".join(f"`{value}`" for value in values)


def _default(node: Schema) -> str:
    default = node.get("default")
    if default is None or isinstance(default, Mapping):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _kind(kind: Kind[Any]) -> Iterator[str]:
    """Yield the names of one kind, with a line about each and its options."""
    places = ", ".join(f"`{_dotted(place)}`" for place in kind.at)
    command = f"qtool list {kind.name} NAME"
    yield f"## {kind.name}\n\nStand at {places}. `{command}` prints help and source."
    lines = ["| name | what it does | options and defaults |", "|---|---|---|"]
    for name in sorted(kind.table()):
        entry = describe(kind, name)
        options = ", ".join(f"`{option.name}: {option.default}`" for option in entry.options)
        lines.append(f"| `{name}` | {_text(entry.summary)} | {_cell(options)} |")
    yield "\n".join(lines)


def _text(text: str) -> str:
    """Return a description on one line."""
    return _cell(" ".join(text.split("\n\n")[0].split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
