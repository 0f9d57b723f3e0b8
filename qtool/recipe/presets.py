"""Read named lists of post-training steps from ``configs/ptq/*.yaml``.

A file is a list of steps, or a mapping of ``ptq`` and of keys that a recipe with the preset has
where it has none of its own: ``rewrite``, ``calibrate``.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from qtool.errors import suggest
from qtool.targets.loader import config_folder

FOLDER = "ptq"


def preset_names() -> tuple[str, ...]:
    """Return the names of the shipped presets."""
    return tuple(sorted(path.stem for path in config_folder(FOLDER).glob("*.yaml")))


def read_preset(name: str) -> list[Any]:
    """Return the steps of a preset, as a recipe writes them.

    Args:
        name: of the preset.

    Raises:
        ValueError: there is no preset of that name.
    """
    names = preset_names()
    if name not in names:
        raise ValueError(
            f'found "{name}", expected a list of steps, or a preset: {", ".join(names)}'
            f"{suggest(name, names)}"
        )
    steps: list[Any] = _content(name)["ptq"]
    return steps


def with_preset(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a recipe, as YAML holds it, with its preset's steps, and other keys that it lacks.

    Args:
        recipe: whose ``ptq`` may be the name of a preset.
    """
    name = recipe.get("ptq")
    if not isinstance(name, str) or name not in preset_names():
        return recipe
    content = _content(name)
    return _filled({**recipe, "ptq": content["ptq"]}, content)


def _filled(own: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with the defaults for keys that it lacks; of sections, where they exist."""
    result = dict(own)
    for key, value in defaults.items():
        if not isinstance(value, Mapping):
            result.setdefault(key, value)
        elif isinstance(own.get(key), Mapping):
            result[key] = _filled(own[key], value)
    return result


def _content(name: str) -> dict[str, Any]:
    content = yaml.safe_load((config_folder(FOLDER) / f"{name}.yaml").read_text())
    return content if isinstance(content, dict) else {"ptq": content}
