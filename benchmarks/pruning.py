"""Pruning joined with 8-bit quantization and training: accuracy, zeros, bytes, speed.

    QTOOL_DATA=... python -m benchmarks.pruning [ROW ...] [--work DIR] [--fresh] [--threads N]

Every row is a `qtool qat` or `qtool ptq` run in its own folder below --work. A stopped run
continues from its checkpoint; finished rows are saved in benchmarks/results. Writes
benchmarks/results/pruning.md.
"""

import argparse
import datetime
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.networks import NETWORKS, data_folder, recipe
from benchmarks.qat import BOTH, IMAGES, MIXED, TORCH
from benchmarks.timing import in_turn, session

NETWORK = "resnet20"


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        label: in the table.
        pruning: as in a recipe.
        epochs: of training; 0: `qtool ptq`, without labels.
        required: accuracy of the file in %; None: nothing is required.
        qat: as in a recipe, besides data, teacher and epochs.
        ptq: steps before training.
        bits: as in a recipe.
        speed: required speed over the int8 file of the whole network, the row "dense".
        placement: as in a recipe.
    """

    label: str
    pruning: Mapping[str, Any] | None
    epochs: int = 0
    required: float | None = None
    qat: Mapping[str, Any] | None = None
    ptq: tuple[Any, ...] = ()
    bits: Mapping[str, Any] | None = None
    speed: float | None = None
    placement: str = "auto"


REPAIR = ("gptq",)
LOW = {"weights": 4, "activations": 8, "layers": {"first": 8, "last": 8}}
CASES: dict[str, Case] = {
    "dense": Case("nothing pruned, W8A8, ptq", None),
    "magnitude_50_alone": Case("50 % magnitude, W8A8, ptq: []", {"sparsity": 0.5}),
    "magnitude_50_gptq": Case("50 % magnitude, W8A8, ptq: gptq", {"sparsity": 0.5}, ptq=REPAIR),
    "obs_50": Case("50 % obs, W8A8, ptq", {"sparsity": 0.5, "method": "obs"}),
    "obs_75": Case("75 % obs, W8A8, ptq", {"sparsity": 0.75, "method": "obs"}),
    "obs_2_4": Case("2:4 obs, W8A8, ptq", {"n_m": "2:4", "method": "obs"}),
    "obs_50_w4": Case(
        "50 % obs, W4A8, ptq: gptq", {"sparsity": 0.5, "method": "obs"}, ptq=REPAIR, bits=LOW
    ),
    "magnitude_50": Case(
        "50 % magnitude, gptq, then training", {"sparsity": 0.5}, 4, 91.3, {"lr": 0.005}, REPAIR
    ),
    "n_m": Case(
        "2:4 magnitude, gptq, then training", {"n_m": "2:4"}, 4, 91.2, {"lr": 0.005}, REPAIR
    ),
    "magnitude_75": Case(
        "75 % magnitude, gradual over 5 of 15 epochs",
        {"sparsity": 0.75, "schedule": {"gradual": "5 epochs"}},
        15,
        90.5,
        {"lr": 0.02, "augment": MIXED["augment"]},
    ),
    "channels": Case(
        "channels: half of the MACs, then training",
        {"channels": "50%"},
        30,
        90.0,
        # 0.1 is behind after 8 epochs on the validation images, and the teacher alone no better.
        {"lr": 0.05, "warmup": 1.0, "augment": MIXED["augment"]},
        speed=1.5,
        placement="all",
    ),
}


def full_recipe(case: Case) -> dict[str, Any]:
    """Return the recipe of a case, with absolute paths."""
    root, network = data_folder(), NETWORKS[NETWORK]
    result = recipe(network, 0, bits=dict(case.bits or {"weights": 8, "activations": 8}))
    factory, inputs = TORCH[NETWORK]
    weights = (root / network.model).with_suffix(".pth")
    result["model"] = {"torch": factory, "weights": str(weights), "input": inputs}
    result["ptq"] = list(case.ptq)
    if case.pruning is not None:
        result["pruning"] = dict(case.pruning)
    result["placement"] = case.placement
    if case.epochs:
        qat = {**IMAGES, "distill": BOTH, **(case.qat or {}), "epochs": case.epochs}
        result["qat"] = {**qat, "images": str(root / qat["images"])}
    return result


def report_summary(report: Any, seconds: float) -> dict[str, Any]:
    """Return the parts of a report that the table uses."""
    training = report["data"].get("training")
    sparsity = {k: v for k, v in report.get("sparsity", {}).items() if k != "layers"}
    return {
        "accuracy": report["accuracy"],
        "parity": report.get("parity"),
        "size": report["size"],
        "latency": report.get("latency"),
        "sparsity": sparsity,
        "training": training and {"epochs": training["epochs"], "best": training["best"]},
        "seconds": seconds,
        "date": str(datetime.date.today()),
    }


def speed_over(dense: Path, file: Path) -> float:
    """Return the ratio of the medians of two files, one thread, batch 1, timed in turn."""
    runs = [session(path) for path in (dense, file)]
    feeds = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    whole, smaller = in_turn(runs, feeds, 30, 0.1, 20, statistics.median)
    return statistics.median(whole) / statistics.median(smaller)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-pruning"))
    parser.add_argument("--fresh", action="store_true", help="run finished rows again")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / "pruning.json"
    for name in arguments.rows or CASES:
        if name in load_rows(store) and not arguments.fresh:
            continue
        command = "qat" if CASES[name].epochs else "ptq"
        options = ("--trust-code", "--threads", arguments.threads)
        content = full_recipe(CASES[name])
        result = run_qtool(command, content, arguments.work / name, *options)
        # Read again: another process may have added rows meanwhile.
        results = {**load_rows(store), name: report_summary(*result)}
        dense = arguments.work / "dense" / "model.onnx"
        if CASES[name].speed is not None and dense.is_file():
            results[name]["speed"] = speed_over(dense, arguments.work / name / "model.onnx")
        save_rows(store, results)
        print(f"{name}: {results[name]['accuracy']}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    header = ["case", "epochs", "float %", "simulated %", "file %", "at least", "met", "zeros"]
    header += [
        "MACs",
        "speed over int8",
        "file",
        "after deflate",
        "parity: share off, max step",
        "minutes",
    ]
    rows = [_line(case, results[name]) for name, case in CASES.items() if name in results]
    text = heading("Pruning joined with quantization", "python -m benchmarks.pruning")
    text += (
        "\nresnet20 on all 10,000 CIFAR test images, which neither training nor the choice of an "
        "epoch has seen; trained rows learn from 15,000 training images, 5 % of which choose the "
        "epoch. Minutes are of the whole command next to other work, not a measurement of speed."
        "\n\n"
    )
    return text + table(header, rows)


def _line(case: Case, row: Any) -> list[object]:
    accuracy, parity, size, sparsity = (
        row[key] for key in ("accuracy", "parity", "size", "sparsity")
    )
    met = "" if case.required is None else accuracy["quantized"] >= case.required
    channels, training = sparsity.get("channels"), row["training"]
    deflated = sparsity.get("compressed_bytes")
    return [
        case.label,
        f"{training['best']} of {case.epochs}" if training else "",
        f"{accuracy['float']:.2f}",
        f"{accuracy['simulated']:.2f}",
        f"{accuracy['quantized']:.2f}",
        "" if case.required is None else f"{case.required:.2f}",
        {True: "yes", False: "NO"}.get(met, ""),
        f"{sparsity['sparsity']:.1%}" if sparsity else "",
        f"{channels['macs'] / channels['float_macs']:.0%}" if channels else "100%",
        f"{row['speed']:.2f} (at least {case.speed})" if "speed" in row else "",
        f"{size['quantized_bytes'] / 1000:.0f} kB",
        f"{deflated / 1000:.0f} kB" if deflated else "",
        f"{parity['share_off']:.1e}, {parity['max_lsb']}",
        f"{row['seconds'] / 60:.0f}",
    ]


if __name__ == "__main__":
    main()
