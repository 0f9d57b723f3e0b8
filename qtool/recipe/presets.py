"""Read named lists of post-training steps from ``configs/ptq/*.yaml``."""

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
    steps: list[Any] = yaml.safe_load((config_folder(FOLDER) / f"{name}.yaml").read_text())
    return steps
