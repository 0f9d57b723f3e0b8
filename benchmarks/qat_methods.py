"""Every method of `qtool list quantizers` where it is meant for: 1 to 4 bits, code books, seeds.

    QTOOL_DATA=... python -m benchmarks.qat_methods [ROW ...] [--work DIR] [--threads N]

Every row is a `qtool qat` run in its own folder below --work. A stopped run continues from its
checkpoint; finished rows are saved in benchmarks/results/qat_methods.json. A part of the training
images chooses the best epoch; the test images are evaluated once. Writes
benchmarks/results/qat_methods.md.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.qat import BOTH, FIRST_LAST, IMAGES, Case, full_recipe, report_summary, train


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        case: recipe and required accuracy.
        seed: of the run.
        epochs: of the run.
        limit: most epochs that the requirement allows.
    """

    case: Case
    epochs: int
    limit: int
    least: float
    seed: int = 0


def _row(
    label: str, weights: int, quantizer: Any, epochs: tuple[int, int], least: float, **qat: Any
) -> Row:
    bits = {"weights": weights, "activations": 8, "layers": FIRST_LAST}
    section = {**IMAGES, "precision": "bfloat16", "distill": BOTH, "lr": 0.02, **qat}
    case = Case("resnet20", label, bits, {**section, "quantizer": quantizer}, ())
    return Row(case, *epochs, least)


ROWS: dict[str, Row] = {
    "ttq": _row("TTQ, W2A8", 2, "ttq", (15, 20), 90.5),
    "twn": _row("TWN, W2A8", 2, "twn", (15, 20), 90.0),
    "bwn": _row("BWN, W1A8", 1, "bwn", (20, 30), 88.0),
    "binaryconnect": _row("BinaryConnect, W1A8", 1, "binaryconnect", (20, 30), 87.0),
    "kmeans16": _row("k-means, 16 levels, A8", 4, "kmeans", (8, 10), 91.4),
    "kmeans4": _row("k-means, 4 levels, A8", 2, "kmeans", (10, 10), 90.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-qat-methods"))
    parser.add_argument("--fresh", action="store_true", help="train finished rows again")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / "qat_methods.json"
    for name in arguments.rows or ROWS:
        if name in load_rows(store) and not arguments.fresh:
            continue
        row = ROWS[name]
        options = ("--device", arguments.device, "--threads", arguments.threads)
        options += ("--seed", str(row.seed))
        result = train(full_recipe(row.case), arguments.work / name, row.epochs, *options)
        summary = {**report_summary(*result), "epochs": row.epochs, "device": arguments.device}
        # Read again: another process may have added rows meanwhile.
        save_rows(store, {**load_rows(store), name: summary})
        print(f"{name}: {summary['accuracy']}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    return heading("Methods of training", "python -m benchmarks.qat_methods") + table(["row"], [])


if __name__ == "__main__":
    main()
