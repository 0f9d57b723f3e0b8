"""Write a proposed recipe as YAML with its reasons as comments."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qtool.pipeline.proposal.propose import Proposal
from qtool.recipe.yaml_loader import emit_key

# A path that leaves the recipe's folder by more levels than this is written absolute.
MAX_UP = 3


def recipe_text(proposal: Proposal, path: Path) -> str:
    """Return the recipe as YAML; paths are relative to its folder where it is near them.

    Args:
        proposal: the recipe.
        path: where it will be written.
    """
    lines = [
        "# Written by `qtool init`; each comment says what was guessed and how sure that is.",
        f"# Run it with: qtool ptq --recipe {path.name}",
    ]
    lines += [f"# Not known: {' '.join(sentence.split())}" for sentence in proposal.unknown]
    for key, value in proposal.sections.items():
        if isinstance(value, Mapping):
            lines += ["", f"{key}:"]
            lines += _section(key, value, proposal.comments, path.absolute().parent)
        else:
            comment = proposal.comments.get((key,), "")
            lines.append(_line("", key, _relative(value, path.absolute().parent), comment))
    return "\n".join(lines) + "\n"


def _section(
    name: str, section: Mapping[str, Any], comments: Mapping[tuple[str, ...], str], folder: Path
) -> Iterator[str]:
    for key, value in section.items():
        yield _line("  ", key, _relative(value, folder), comments.get((name, key), ""))


def _line(indent: str, key: str, value: Any, comment: str) -> str:
    """Return one key with its value on the same line, and a comment above where it has one."""
    text = emit_key(key, value)
    above = f"{indent}# {' '.join(comment.split())}\n" if comment else ""
    return f"{above}{indent}{text}"


def _relative(value: Any, folder: Path) -> Any:
    """Return a value with its absolute paths relative to a folder, where they are near it."""
    if isinstance(value, Mapping):
        return {key: _relative(inner, folder) for key, inner in value.items()}
    if not isinstance(value, str) or not os.path.isabs(value):
        return value
    relative = os.path.relpath(value, folder)
    return value if relative.split(os.sep).count("..") > MAX_UP else relative
