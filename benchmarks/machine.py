"""Heading, table and saved rows of a benchmark."""

import argparse
import datetime
import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtool.verification.environment import environment


def heading(title: str, command: str) -> str:
    """Return title, command, machine and versions of a results page."""
    facts = environment()
    isa = facts["isa"]
    names = ", ".join(isa) if isinstance(isa, list) else str(isa)
    versions = ", ".join(
        f"{k} {facts[k]}" for k in ("python", "onnxruntime", "torch", "onnx", "numpy")
    )
    return (
        f"# {title}\n\n`{command}`, {datetime.date.today()}\n\n"
        f"Machine: {facts['cpu']}, {len(os.sched_getaffinity(0))} cores, {names}; {versions}.\n"
    )


def children_cpu() -> float:
    """Return the CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def load_rows(store: Path) -> dict[str, Any]:
    """Return the rows saved by :func:`save_rows`; empty where there are none."""
    return json.loads(store.read_text()) if store.is_file() else {}


def save_rows(store: Path, rows: dict[str, Any]) -> None:
    """Save finished rows, so that a stopped benchmark continues with the next one."""
    store.write_text(json.dumps(rows, indent=1))


def save_row(store: Path, label: str, row: Any) -> None:
    """Save one finished row beside those that other processes may have written meanwhile."""
    save_rows(store, {**load_rows(store), label: row})


def fold_options(description: str | None, work: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark whose rows are `qtool ptq` runs by fold.

    Args:
        description: of the program.
        work: folder of its runs, when none is named.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path(work))
    parser.add_argument("--folds", type=int, default=2, help="folds of each row, at most")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    return parser


def results_folder() -> Path:
    """Return the folder of the results pages, benchmarks/results."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    return folder
