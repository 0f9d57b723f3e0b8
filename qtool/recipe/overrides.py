"""Command-line options and absolute paths in a recipe's plain data, before it is checked."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from qtool.data import READERS
from qtool.data.preprocess import is_path
from qtool.errors import DataError, KeyPath, RecipeError
from qtool.recipe.data_folder import Source, data_sources, source_for
from qtool.recipe.registry import DATA_SECTIONS, YAML_FILE
from qtool.recipe.sections.network import FILES
from qtool.recipe.yaml_loader import Document, parse
from qtool.user_code import is_function_name

DATA_KEYS = (*READERS, "labels", "take")
PATH_KEYS = ("labels", "classes", "preprocess", "code")
_NAMED: dict[str, Callable[[str], bool]] = {
    "preprocess": is_path,
    "torch": lambda text: text.endswith(FILES),
    "target": YAML_FILE.accepts,
}  # these may be a name instead; the function returns whether it is a path


def put(document: Document, path: KeyPath, value: Any, place: str) -> None:
    """Set one value, making the mappings above it.

    Args:
        document: changed in place.
        path: the keys down to the value.
        value: plain data; None removes the key.
        place: the option that sets it, for messages.

    Raises:
        RecipeError: the path leads into a list.
    """
    parent = document.data
    for depth, key in enumerate(path[:-1], start=1):
        if not isinstance(parent.get(key), dict):
            if isinstance(parent.get(key), list):
                raise RecipeError(f"{place}: {key} is a list; set it whole: {key}=[...]")
            document.forget(path[:depth])
            document.places[path[:depth]] = place
            parent[key] = {}
        parent = parent[key]
    document.forget(path)
    parent.pop(path[-1], None)
    if value is not None:
        parent[path[-1]] = value
        document.places[path] = place


def use_data(document: Document, data: FilePath, place: str) -> None:
    """Point calibrate, and evaluate where it is, at their parts of ``data``.

    Where the recipe reads text or recordings and ``data`` holds such, its settings stay.

    Args:
        document: changed in place.
        data: an absolute path.
        place: the option that names it, for messages.

    Raises:
        RecipeError: nothing is there, or nothing that a reader reads.
    """
    both = isinstance(document.data.get("evaluate"), dict)
    sections = [document.data.get(name) for name in DATA_SECTIONS]
    has_classes = any(isinstance(section, dict) and "classes" in section for section in sections)
    for part, name in enumerate(("calibrate", "evaluate") if both else ("calibrate",)):
        same, source = _source(document.data.get(name), data, place)
        values = source.sections(None)[part]
        for key in DATA_KEYS:
            if key != same:
                put(document, (name, key), None, place)
        if same is not None:
            put(document, (name, same, "path"), values.pop(same)["path"], place)
        if not both:
            values.pop("take", None)  # nothing else reads the other samples
        if has_classes:
            values.pop("classes", None)
        for key, value in values.items():
            put(document, (name, key), value, place)
        if both or source.evaluate is not None:
            document.notes[name] = f"{place}: {source.reason}"


def _source(section: Any, data: FilePath, place: str) -> tuple[str | None, Source]:
    """Return the reader of a section whose settings stay, if any, and what ``data`` holds for it.

    Raises:
        RecipeError: nothing is there, or nothing that a reader reads.
    """
    try:
        for key in ("text", "wav"):
            has_options = isinstance(section, dict) and isinstance(section.get(key), dict)
            if has_options and (source := source_for(key, data)):
                return key, source
        return None, data_sources(data)[0]
    except DataError as error:
        raise RecipeError(f"{place}: {error}") from error


@dataclass(frozen=True)
class Override:
    """One key of the recipe that the command line sets.

    Attributes:
        text: ``key.key=value``, the value in YAML; a key with dots in it goes in double quotes.
        option: as the user wrote it, for messages; "" where that is ``--set text``.
    """

    text: str
    option: str = ""


def override(document: Document, setting: Override) -> None:
    """Apply one override.

    Args:
        document: changed in place.
        setting: a key and its value.

    Raises:
        RecipeError: not of that form, the value is not YAML, or a key is a list.
    """
    text = setting.text
    place = setting.option or f"--set {text}"
    key, equals, value = text.partition("=")
    quoted = key.split('"')
    words: list[str] = []
    for i, piece in enumerate(quoted):
        words += [piece] if i % 2 else [w for w in piece.strip(".").split(".") if w]
    if not equals or not words or len(quoted) % 2 == 0:
        raise RecipeError(f"{place}: expected key=value, such as bits.weights=8")
    try:
        data = parse(value, place).data
    except RecipeError as error:
        raise RecipeError(str(error).replace(f"{place}:1:", f"{place}:", 1)) from error
    put(document, tuple(words), data, place)


def make_absolute(data: dict[str, Any], folder: FilePath) -> None:
    """Resolve every relative path against the recipe's folder, in place.

    Args:
        data: of the recipe, not yet checked.
        folder: absolute.
    """

    def resolve(section: Any, key: str) -> None:
        text = section.get(key) if isinstance(section, dict) else None
        is_file = _NAMED.get(key)
        if isinstance(text, str) and text and (is_file is None or is_file(text)):
            section[key] = os.path.abspath(folder / os.path.expanduser(text))

    for key in ("model", "target"):
        resolve(data, key)
    model = data.get("model")
    if isinstance(model, dict):
        if "onnx" not in model and not str(model.get("torch")).endswith(FILES):
            model.setdefault("code", ".")
        for key in ("onnx", "torch", "weights", "code"):
            resolve(model, key)
    for name in DATA_SECTIONS:
        section = data.get(name)
        for key in PATH_KEYS:
            resolve(section, key)
        if isinstance(section, dict):
            for key, reader in READERS.items():
                if reader.options is str or (reader.short_form and reader.source in reader.paths):
                    resolve(section, key)  # the path alone
                for option in reader.paths:
                    resolve(section.get(key), option)
            if "code" not in section and _runs_code(section):
                section["code"] = str(folder)


def _runs_code(section: dict[str, Any]) -> bool:
    """Return whether a data section names code of the user's own."""
    own = (section.get("metric"), section.get("loss"))
    return "python" in section or any(isinstance(n, str) and is_function_name(n) for n in own)
