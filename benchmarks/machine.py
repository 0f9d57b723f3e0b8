"""Heading, table and saved rows of a benchmark."""

import argparse
import datetime
import json
import os
import resource
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtool.verification.environment import environment

# The key of a store that names the machine of each row.
MACHINES = "machines"


def machine() -> str:
    """Return the processor, the cores and the instruction sets that a row is measured on."""
    facts = environment()
    isa = facts["isa"]
    names = ", ".join(isa) if isinstance(isa, list) else str(isa)
    return f"{facts['cpu']}, {len(os.sched_getaffinity(0))} cores, {names}"


def heading(title: str, command: str) -> str:
    """Return title, command, machines and versions of a results page.

    Args:
        title: of the page.
        command: `python -m benchmarks.NAME`, whose rows are saved in NAME.json.
    """
    facts = environment()
    versions = ", ".join(
        f"{k} {facts[k]}" for k in ("python", "onnxruntime", "torch", "onnx", "numpy")
    )
    name = command.split()[2].rpartition(".")[2]
    machines = _machines(results_folder() / f"{name}.json")
    return (
        f"# {title}\n\n`{command}`, {datetime.date.today()}\n\n"
        f"Machine: {'; '.join(machines) or machine()}; {versions}.\n"
    )


def _machines(store: Path) -> list[str]:
    """Return the machines of all saved rows, each but the commonest with its rows."""
    rows = defaultdict(list)
    for label, name in _saved(store).get(MACHINES, {}).items():
        rows[name].append(label)
    ordered = sorted(rows, key=lambda name: -len(rows[name]))
    return [*ordered[:1], *(f"{name} ({'; '.join(rows[name])})" for name in ordered[1:])]


def children_cpu() -> float:
    """Return the CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _saved(store: Path) -> dict[str, Any]:
    return json.loads(store.read_text()) if store.is_file() else {}


def load_rows(store: Path) -> dict[str, Any]:
    """Return the rows saved by :func:`save_rows`; empty where there are none."""
    return {label: row for label, row in _saved(store).items() if label != MACHINES}


def save_rows(store: Path, rows: dict[str, Any]) -> None:
    """Save finished rows, so that a stopped benchmark continues with the next one.

    New and changed rows are noted as measured on this machine.
    """
    before = _saved(store)
    machines = before.pop(MACHINES, {})
    changed = [label for label, row in rows.items() if before.get(label) != row]
    machines |= dict.fromkeys(changed, machine())
    store.write_text(json.dumps({**rows, MACHINES: machines}, indent=1))


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
