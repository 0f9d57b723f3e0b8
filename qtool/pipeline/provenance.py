"""Say in a written file what it was made from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtool.errors import KeyPath
from qtool.recipe.model import Recipe
from qtool.recipe.validation import named_files
from qtool.report.schema import Provenance
from qtool.version import __version__

PREFIX = "qtool."
# Sections of a recipe that do not change the file.
MEASURING = ("evaluate", "gates", "latency", "memory")


def provenance_of(recipe: Recipe, model_sha256: str) -> Provenance:
    """Return what a file is made from.

    Args:
        recipe: resolved.
        model_sha256: digest of the float model.
    """
    return Provenance(
        qtool=__version__, recipe_sha256=recipe_digest(recipe), model_sha256=model_sha256
    )


def recipe_digest(recipe: Recipe) -> str:
    """Return a digest of what a recipe says about the file, the same in every folder.

    Paths count by their last part; sections that only measure, and the name of the file, do not
    count.

    Args:
        recipe: resolved, so that it holds every default.
    """
    plain = recipe.model_dump(mode="json", exclude_none=True, exclude=set(MEASURING))
    for key, file in named_files(recipe):
        if key[0] not in MEASURING:
            _replace(plain, key, file)
    plain["output"].pop("file")
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _replace(plain: dict[str, Any], key: KeyPath, file: str) -> None:
    """Put the last part of a path in place of the path; the folder of code does not count."""
    for part in key[:-1]:
        plain = plain[str(part)]
    plain[str(key[-1])] = "" if key[-1] == "code" else Path(file).name


def write_provenance(metadata: dict[str, str], provenance: Provenance) -> None:
    """Put the provenance into the metadata of an ONNX model.

    Args:
        metadata: of the model; changed in place. Entries of a run that the float model itself came
            from are replaced.
        provenance: of the file.
    """
    for name in Provenance.model_fields:
        metadata.pop(_key(name), None)
    entries = provenance.model_dump(exclude_none=True)
    metadata |= {_key(name): text for name, text in entries.items()}


def read_provenance(metadata: Mapping[str, str]) -> Provenance | None:
    """Return the provenance of a file; None where another tool wrote it.

    Args:
        metadata: of the ONNX model.
    """
    entries = {n: metadata[_key(n)] for n in Provenance.model_fields if _key(n) in metadata}
    return Provenance.model_validate(entries) if "qtool" in entries else None


def _key(name: str) -> str:
    """Return the metadata entry of a field."""
    return f"{PREFIX}{'version' if name == 'qtool' else name}"
