"""What a table was measured on, and how tables and their rows are kept."""

import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtool.verification.environment import environment


def heading(title: str, command: str) -> str:
    """Title, the command that makes the table, machine and versions."""
    found = environment()
    isa = found["isa"]
    names = ", ".join(isa) if isinstance(isa, list) else str(isa)
    versions = ", ".join(
        f"{k} {found[k]}" for k in ("python", "onnxruntime", "torch", "onnx", "numpy")
    )
    return (
        f"# {title}\n\n`{command}`, {datetime.date.today()}\n\n"
        f"Machine: {found['cpu']}, {len(os.sched_getaffinity(0))} cores, {names}; {versions}.\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def kept_rows(store: Path) -> dict[str, Any]:
    """What :func:`keep_rows` wrote; empty where it has not written."""
    return json.loads(store.read_text()) if store.is_file() else {}


def keep_rows(store: Path, rows: dict[str, Any]) -> None:
    """Write what is finished, so that a stopped benchmark goes on from there."""
    store.write_text(json.dumps(rows, indent=1))


def results_folder() -> Path:
    """Where tables go: benchmarks/results."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    return folder
