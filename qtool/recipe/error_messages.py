"""pydantic's errors as messages: place, key, the value found, the expected one, the remedy."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qtool.errors import KeyPath, RecipeError, suggest
from qtool.recipe.yaml_loader import Document

SHOWN = 10  # lines in one message: more scroll the first ones off a terminal


def explain(
    error: ValidationError, document: Document, model: type[BaseModel], at: KeyPath = ()
) -> RecipeError:
    """Convert a validation error of pydantic to one error, a line for each finding.

    Args:
        error: from validating the data at ``at``.
        document: the data and its places.
        model: the class of the whole document, for the keys that exist.
        at: where in the document the validated part stands.

    Returns:
        An error of at most :data:`SHOWN` lines, each with ``file:line`` and key.
    """
    expected: dict[KeyPath, list[str]] = {}
    problems: dict[KeyPath, RecipeError] = {}
    here = _value_at(document.data, at)
    located = [(finding, at + _key_path(finding, here)) for finding in error.errors()]
    # A mapping where no branch of a union takes one has findings of other branches only.
    own = [each for each in located if not _is_of_other_branch(each[0], each[1][len(at) :])]
    for finding, path in own or located:
        text = _own_text(finding, path, model)
        if text is None:
            expected.setdefault(path, []).append(_expected(finding))
            text = _mismatch(finding["input"], expected[path])
        place = path[:-1] if finding["type"] == "missing" else path
        problems[path] = document.error(place, text)
    first, *others = problems.values()
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    lines = [first.text, *map(str, others[: SHOWN - 1]), *more]
    return RecipeError("\n".join(lines), first.key, first.place)


def describe(value: Any) -> str:
    """Return a value as the user wrote it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: ..." for k in list(value)[:3]) + "}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f'"{text}"' if isinstance(value, str) else text


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        if part != 0 or isinstance(data, list):  # one item may stand in place of a list
            data = data[part]
    return data


def _key_path(finding: Any, data: Any) -> KeyPath:
    """Return the keys that lead to a finding, without pydantic's names of union branches."""
    path: list[str | int] = []
    for part in finding["loc"]:
        in_mapping = isinstance(data, dict) and part in data
        if in_mapping or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            path.append(part)
    if finding["type"] == "missing":
        path.append(finding["loc"][-1])
    return tuple(path)


def _is_of_other_branch(finding: Any, path: KeyPath) -> bool:
    """Return whether a finding is about a branch of a union that the value's type rules out."""
    if len(path) == len(finding["loc"]):
        return False
    is_mapping = isinstance(finding["input"], dict)
    return finding["type"] in (("string_type", "path_type") if is_mapping else ("model_type",))


def _own_text(finding: Any, path: KeyPath, model: type[BaseModel]) -> str | None:
    """Return the text for an unknown or missing key or a rule of ours; None for a mismatch."""
    if finding["type"] == "extra_forbidden":
        keys = sorted(valid_keys(model, path[:-1]))
        hint = suggest(str(path[-1]), keys) or "; remove it."
        return f"unknown key{hint} Known here: {', '.join(keys)}"
    if finding["type"] == "missing":
        return f'the key "{path[-1]}" is missing; add it'
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    return None


def _mismatch(value: Any, expected: list[str]) -> str:
    words = " or ".join(dict.fromkeys(expected))
    names = words.replace(" or ", ", ").split(", ")
    hint = suggest(value, names) if isinstance(value, str) and value not in names else ""
    return f"found {describe(value)}, expected {words}{hint}"


def _merge_ranges(listed: str) -> str:
    """Shorten ``2, 3, 4, 5 or float`` to ``2 to 5 or float``."""
    return re.sub(
        r"(\d+), (?:\d+, )+(\d+)(?: or (\d+))?", lambda m: f"{m[1]} to {m[3] or m[2]}", listed
    )


def _expected(finding: Any) -> str:
    """Return the value that pydantic expected, as a noun phrase."""
    kind, context = finding["type"], finding.get("ctx", {})
    if kind == "literal_error":
        return _merge_ranges(str(context["expected"]).replace("'", ""))
    limits = {
        "greater_than": ("gt", "a number above"),
        "greater_than_equal": ("ge", "a number from"),
        "less_than": ("lt", "a number below"),
        "less_than_equal": ("le", "a number up to"),
    }
    if kind in limits:
        key, words = limits[kind]
        return f"{words} {context[key]:g}"
    if kind in _NOUNS:
        return _NOUNS[kind]
    text = str(finding["msg"])
    for start in ("Input should be ", "Input should have ", "Value should have "):
        text = text.removeprefix(start)
    return text[:1].lower() + text[1:]


_NOUNS = {
    "model_type": "keys and values: {key: value}",
    "dict_type": "keys and values: {key: value}",
    "model_attributes_type": "keys and values: {key: value}",
    "dataclass_type": "keys and values: {key: value}",
    "string_type": "a word or text",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list: [a, b]",
    "list_type": "a list: [a, b]",
}


def valid_keys(model: type[BaseModel], path: KeyPath) -> set[str]:
    """Return the keys that exist at ``path`` below ``model``; empty where any key may stand."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [m for f in fields for m in _models_in(f.annotation)]
    return {key for m in models for key in m.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
