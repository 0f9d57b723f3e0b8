"""pydantic's findings in the user's words: place, key, what was found and expected, remedy."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qtool.errors import RecipeError, suggest
from qtool.recipe_yaml import Document, Path

SHOWN = 10  # errors in one message


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> RecipeError:
    """Turn what pydantic found into one error, a line for each finding.

    Args:
        error: from validating ``document.data``.
        document: the data and its places.
        model: the class it was validated against, for the keys that exist.
    """
    lines: list[str] = []
    for finding in error.errors():
        path = _real(finding["loc"], document.data)
        line = _sentence(finding, path, document, model)
        if line and line not in lines:
            lines.append(line)
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return RecipeError("\n".join(lines[:SHOWN] + more))


def describe(value: Any) -> str:
    """A value as the user wrote it, shortened."""
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


def _real(loc: tuple[Any, ...], data: Any) -> Path:
    """Drop the names of union branches, which pydantic puts between keys."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            data = data[part]
            path.append(part)
        elif i == len(loc) - 1 and isinstance(data, dict):
            path.append(part)  # a missing key
    return tuple(path)


def _sentence(finding: Any, path: Path, document: Document, model: type[BaseModel]) -> str | None:
    """One line for one finding, or None for the branch of a union the user did not mean."""
    found, kind = finding["input"], finding["type"]
    branch = len(path) < len(finding["loc"]) and kind != "missing"
    if branch and kind == ("string_type" if isinstance(found, dict | list) else "model_type"):
        return None
    if kind == "extra_forbidden":
        keys = sorted(known_keys(model, path[:-1]))
        text = f"unknown key{suggest(str(path[-1]), keys)}"
        text += "" if "?" in text else "; remove it."
        return str(document.error(path, f"{text} Known here: {', '.join(keys)}"))
    if kind == "missing":
        return str(document.error(path[:-1], f'the key "{path[-1]}" is missing; add it'))
    if kind == "value_error":
        return str(document.error(path, str(finding["ctx"]["error"])))
    expected = _expected(finding)
    hint = ""
    if kind == "literal_error" and isinstance(found, str):
        hint = suggest(found, _quoted(expected))
    return str(document.error(path, f"found {describe(found)}, expected {expected}{hint}"))


def _quoted(expected: str) -> list[str]:
    return [word for word in expected.replace(" or ", ", ").split(", ") if word]


def _expected(finding: Any) -> str:
    """What pydantic wanted, as a noun phrase."""
    kind, context = finding["type"], finding.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
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


def known_keys(model: type[BaseModel], path: Path) -> set[str]:
    """The keys that exist at ``path`` below ``model``; empty where any key may stand."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]  # type: ignore[index]
        if fields:
            models = [m for f in fields for m in _models_in(f.annotation)]
    return {key for m in models for key in m.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
