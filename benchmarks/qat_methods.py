"""Every method of `qtool list quantizers` where it is meant for: 1 to 4 bits, code books, seeds.

    QTOOL_DATA=... python -m benchmarks.qat_methods [ROW ...] [--work DIR] [--threads N]

Every row is a `qtool qat` run in its own folder below --work. A stopped run continues from its
checkpoint; finished rows are saved in benchmarks/results/qat_methods.json. A part of the training
images chooses the best epoch; the test images are evaluated once. Writes
benchmarks/results/qat_methods.md.
"""

import argparse
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import heading, load_rows, results_folder, save_row, table
from benchmarks.qat import (
    BOTH,
    CASES,
    FIRST_LAST,
    IMAGES,
    MIXED,
    Case,
    full_recipe,
    report_summary,
    train,
)

SEEDS = (0, 1, 2)
HEADER = (
    "network",
    "method",
    "epochs (at most)",
    "float %",
    "validation %",
    "simulated %",
    "file %",
    "at least",
    "met",
    "parity: share off, max step",
    "kB (Huffman, weights)",
    "minutes",
    "measured",
)
COMPARED = ("lsq", "qil", "lq_nets", "apot", "n2uq", "pact", "nice", "faq", "regularization")
NONUNIFORM = ("qil", "lq_nets", "apot", "n2uq")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        case: network, label and recipe.
        epochs: of the run, and the most that the requirement allows.
        least: required accuracy of the file; None: compared with other rows.
        seed: of the run.
    """

    case: Case
    epochs: tuple[int, int]
    least: float | None = None
    seed: int = 0


def _row(
    label: str,
    bits: tuple[int, int],
    quantizer: Any,
    epochs: tuple[int, int],
    rewrite: tuple[str, ...] = (),
    **qat: Any,
) -> Row:
    """Return a row of resnet20 from the .pth, first and last layer 8 bits."""
    extra = {"rewrite": list(rewrite)} if rewrite else {}
    widths = {"weights": bits[0], "activations": bits[1], "layers": FIRST_LAST}
    section = {**IMAGES, "precision": "bfloat16", "distill": BOTH, "lr": 0.02, **qat}
    section |= {"quantizer": quantizer}
    return Row(Case("resnet20", label, widths, section, (), extra=extra), epochs)


def _other(network: str, label: str, bits: int, quantizer: str, **extra: Any) -> Row:
    """Return a row of a network whose samples are arrays, first and last layer 8 bits."""
    known = CASES["sst2_w4a4" if network.startswith("sst2") else "fsdd_w4a4"]
    widths = {"weights": bits, "activations": 8, "layers": FIRST_LAST}
    qat = {**known.qat, "quantizer": quantizer}
    return Row(Case(network, label, widths, qat, (), extra=extra), (12, 12))


def _integer_only(weights: int, activations: int) -> Row:
    """Return a row of SAT for hardware without floats, on a network of depthwise convolutions."""
    ends = FIRST_LAST if weights < 8 else {}
    widths = {"weights": weights, "activations": activations, "layers": ends}
    qat = {**CASES["fsdd_w4a4"].qat, "quantizer": "sat", "batchnorm": "folded"}
    label = f"SAT, integer-only, W{weights}A{activations}"
    extra = {"target": "integer-only"}
    return Row(Case("fsdd_dscnn", label, widths, qat, (), extra=extra), (12, 12))


ROWS: dict[str, Row] = {
    # The threshold by the loss of the first epochs: 1.73 and 1.27 after 1 and 3, of 0.05 2.60 and
    # 1.40; equal after 6.
    "ttq": replace(
        _row("TTQ, threshold 0.2, W2A8", (2, 8), {"ttq": {"threshold": 0.2}}, (15, 20)), least=90.5
    ),
    "twn": replace(_row("TWN, W2A8", (2, 8), "twn", (15, 20)), least=90.0),
    "bwn": replace(_row("BWN, W1A8", (1, 8), "bwn", (20, 30)), least=88.0),
    "binaryconnect": replace(
        _row("BinaryConnect, W1A8", (1, 8), "binaryconnect", (20, 30)), least=87.0
    ),
    "kmeans16": replace(_row("k-means, 16 levels, A8", (4, 8), "kmeans", (8, 10)), least=91.4),
    "kmeans4": replace(_row("k-means, 4 levels, A8", (2, 8), "kmeans", (10, 10)), least=90.0),
    **{
        f"kmeans{2**bits}_nearest": replace(
            _row(
                f"k-means, {2**bits} levels, nearest, A8",
                (bits, 8),
                {"kmeans": {"indices": "nearest"}},
                (epochs, 10),
            ),
            least=least,
        )
        for bits, epochs, least in ((4, 8, 91.4), (2, 10, 90.0))
    },
    "xnor": replace(
        _row(
            "XNOR, shortcuts and thresholds of Bi-Real Net and ReActNet, W1A1",
            (1, 1),
            "xnor",
            (60, 60),
            rewrite=("bireal_shortcuts",),
            lr=0.04,
        ),
        least=80.0,
    ),
    # The best of these on the validation images is the one that counts.
    **{
        f"{name}_long": replace(
            _row(f"{name}, W2A2", (2, 2), name, (30, 30), lr=0.04, augment=MIXED["augment"]),
            least=87.5,
        )
        for name in NONUNIFORM
    },
    **{
        f"{name}_{bits}{bits}_{seed}": replace(
            _row(f"{name}, W{bits}A{bits}", (bits, bits), name, (6, 6), count=5000), seed=seed
        )
        for bits in (4, 3, 2)
        for name in COMPARED
        for seed in SEEDS
    },
    **{
        f"{network.split('_')[0]}_{name}": _other(network, f"{name}, A8", bits, name)
        for network in ("sst2_transformer2l", "fsdd_dscnn")
        for name, bits in (("bwn", 1), ("twn", 2), ("ttq", 2))
    },
    **{f"sat_w{w}a{a}": _integer_only(w, a) for w, a in ((8, 8), (4, 8), (2, 8), (1, 8), (4, 4))},
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
        content = full_recipe(row.case)
        content["evaluate"]["simulate"] = "all"
        result = train(content, arguments.work / name, row.epochs[0], *options)
        scores = [epoch["score"] for epoch in result[0]["data"]["training"]["epochs"]]
        summary = {**report_summary(*result), "validation": max(scores)}
        save_row(store, name, summary)
        print(f"{name}: {summary['accuracy']}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    text = heading("Methods of training", "python -m benchmarks.qat_methods")
    text += (
        "\nFirst and last layer 8 bits. Rows of resnet20 start from the .pth and learn from 15,000 "
        "training images, 5 % of which choose the epoch; the 10,000 test images were evaluated "
        "once. Labels and teacher; products in bfloat16 while training. Minutes are of the whole "
        "command beside other work. Rows that are missing have not been run.\n\n"
    )
    text += table(
        HEADER,
        [_line(row, results[name]) for name, row in ROWS.items() if _is_single(name, results)],
    )
    return text + _comparison(results)


def _is_single(name: str, results: Mapping[str, Any]) -> bool:
    return name in results and (name.startswith(("kmeans", "sat_")) or not name[-1].isdigit())


def _line(row: Row, result: Any) -> list[object]:
    accuracy, parity, size = result["accuracy"], result["parity"], result["size"]
    least, file = row.least, accuracy["quantized"]
    met = "" if least is None else "yes" if file >= least else "NO"
    huffman = size.get("weight_huffman_bytes")
    return [
        row.case.network,
        row.case.label,
        f"{len(result['history']) - 1} ({row.epochs[1]})",
        f"{accuracy['float']:.2f}",
        f"{result['validation']:.2f}",
        f"{accuracy['simulated']:.2f}",
        f"{file:.2f}",
        "" if least is None else f"{least:.1f}",
        met,
        f"{parity['share_off']:.1e}, {parity['max_lsb']}",
        f"{size['quantized_bytes'] / 1e3:.1f} ({(huffman or 0) / 1e3:.1f})",
        f"{result['seconds'] / 60:.0f}",
        result["date"],
    ]


def _comparison(results: Mapping[str, Any]) -> str:
    """Return the table of all methods at equal budgets: mean and deviation over the seeds."""
    rows = []
    for name in COMPARED:
        cells = []
        for bits in (4, 3, 2):
            runs = [results.get(f"{name}_{bits}{bits}_{seed}") for seed in SEEDS]
            scores = [run["accuracy"]["quantized"] for run in runs if run]
            spread = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.2f}{spread} ({len(scores)})" if scores else "")
        if any(cells):
            rows.append([name, *cells])
    if not rows:
        return ""
    header = ["quantizer", *(f"W{bits}A{bits}: mean, deviation (seeds)" for bits in (4, 3, 2))]
    return f"\n5,000 images, 6 epochs, one rate for all:\n\n{table(header, rows)}"


if __name__ == "__main__":
    main()
