"""The state of a long test, saved whole after each step, so that the same command continues."""

import json
from pathlib import Path
from typing import Any


def load_state(file: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """Return the saved state, or a fresh one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return json.loads(file.read_text()) if file.exists() else fresh


def save_state(file: Path, state: dict[str, Any]) -> None:
    """Replace the file."""
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(state, indent=1))
    temporary.replace(file)
