"""Quantization-aware training: accuracy of the float network, simulated and of the file.

    QTOOL_DATA=... python -m benchmarks.qat [ROW ...] [--work DIR] [--fresh] [--device cuda]

Every row is a `qtool qat` run in its own folder below --work. A stopped run continues from its
checkpoint; finished rows are saved in benchmarks/results. Writes benchmarks/results/qat.md.
"""

import argparse
import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.networks import NETWORKS, data_folder, recipe

FIRST_LAST = {"first": 8, "last": 8}
BOTH = {"weight": 0.5, "temperature": 4.0}
CROP_FLIP: dict[str, Any] = {"crop": 4, "flip": True}
IMAGES: dict[str, Any] = {"images": "cifar10/train", "augment": CROP_FLIP}
MIXED = {**IMAGES, "augment": {**CROP_FLIP, "mixup": 0.4, "cutmix": 0.4}}


@dataclass(frozen=True)
class Case:
    """One row, or several where a run continues with more epochs.

    Attributes:
        network: a name of NETWORKS.
        label: in the table.
        bits: as in a recipe.
        qat: as in a recipe, without epochs.
        epochs: (epochs, required accuracy); the second run continues the first.
        within: points below the float network that are allowed, where no accuracy is required.
        torch: start from the .pth, with BatchNorm live.
        extra: other parts of the recipe.
    """

    network: str
    label: str
    bits: Mapping[str, Any]
    qat: Mapping[str, Any]
    epochs: tuple[tuple[int, float | None], ...]
    within: float | None = None
    torch: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


def _low(weights: int, activations: int) -> dict[str, Any]:
    return {"weights": weights, "activations": activations, "layers": FIRST_LAST}


def _white(weights: int, granularity: str) -> Case:
    bits = {"weights": weights, "activations": 8, "granularity": granularity, "layers": FIRST_LAST}
    # With one scale for all channels BatchNorm cannot be folded into scales after training.
    norm = "live" if granularity == "channel" else "folded"
    qat = {**IMAGES, "lr": 0.005, "batchnorm": norm, "distill": BOTH}
    within = 0.2 if weights == 8 else 0.5
    label = f"W{weights}A8, weights per {granularity}"
    return Case("resnet20", label, bits, qat, ((3, None),), within)


CASES: dict[str, Case] = {
    "resnet20_w4a4": Case(
        "resnet20",
        "W4A4, labels and teacher",
        _low(4, 4),
        {**IMAGES, "lr": 0.02, "distill": BOTH},
        ((15, 91.3),),
    ),
    "resnet20_w2a2": Case(
        "resnet20",
        "W2A2, labels and teacher, mixed images",
        _low(2, 2),
        {**MIXED, "lr": 0.04, "precision": "bfloat16", "distill": BOTH},
        ((15, 85.0), (60, 87.5)),
    ),
    "resnet20_onnx_w4a4": Case(
        "resnet20",
        "ONNX only, W4A4, teacher alone",
        _low(4, 4),
        {**IMAGES, "lr": 0.01, "distill": {"weight": 1.0, "temperature": 4.0}},
        ((15, 90.8),),
        torch=False,
    ),
    "resnet20_w3a3": Case(
        "resnet20",
        "W3A3, labels and teacher",
        _low(3, 3),
        {**IMAGES, "lr": 0.02, "distill": BOTH},
        ((20, 90.0),),
    ),
    "fsdd_w4a4": Case(
        "fsdd_dscnn",
        "W4A4, labels and teacher",
        _low(4, 4),
        {"lr": 0.01, "batch": 64, "distill": BOTH},
        ((12, 98.3),),
    ),
    "sst2_w4a4": Case(
        "sst2_transformer2l",
        "W4A4, labels and teacher",
        _low(4, 4),
        {
            "optimizer": "adamw",
            "lr": 1e-4,
            "batch": 64,
            "distill": {"weight": 0.5, "temperature": 1.0},
        },
        ((20, 78.5),),
    ),
    "badly_scaled": Case(
        "resnet20_badly_scaled",
        "W8A8, weights per tensor, no equalization",
        {"weights": 8, "activations": 8, "granularity": "tensor"},
        {
            **IMAGES,
            "optimizer": "adamw",  # steps alike for channels of all sizes, as SGD's are not
            "lr": 1.5e-4,
            "scale_lr": 4e-5,
            "batch": 8,  # many small steps
            "weight_decay": 0.8,  # large channels shrink, and the small ones behind them grow
            "batchnorm": "folded",
            "distill": {**BOTH, "blocks": 20.0},
        },
        ((3, 88.0),),
        torch=False,
        extra={"rewrite": ["fold_batchnorm"]},
    ),
    "white_w8_tensor": _white(8, "tensor"),
    "white_w8_channel": _white(8, "channel"),
    "white_w4_tensor": _white(4, "tensor"),
    "white_w4_channel": _white(4, "channel"),
    "resnet56_w4a4": Case(
        "resnet56",
        "W4A4, labels and teacher",
        _low(4, 4),
        {**IMAGES, "lr": 0.02, "distill": BOTH},
        ((10, 92.9),),
    ),
}

TORCH = {
    "resnet20": ("resnet_cifar:resnet20", {"input": ["N", 3, 32, 32]}),
    "resnet56": ("resnet_cifar:resnet56", {"input": ["N", 3, 32, 32]}),
    "fsdd_dscnn": ("fsdd_net:dscnn", {"input": ["N", 1, 40, 61]}),
    "sst2_transformer2l": (
        "sst2_net:sst2",
        {n: {"shape": ["N", 48], "dtype": "int64"} for n in ("input_ids", "attention_mask")},
    ),
}


def full_recipe(case: Case) -> dict[str, Any]:
    """Return the recipe of a case, with absolute paths."""
    root, network = data_folder(), NETWORKS[case.network]
    result = recipe(network, 0, bits=dict(case.bits), **case.extra)
    if case.torch:
        factory, inputs = TORCH[case.network]
        weights = (root / network.model).with_suffix(".pth")
        result["model"] = {"torch": factory, "weights": str(weights), "input": inputs}
    qat = dict(case.qat)
    if "images" in qat:
        qat["images"] = str(root / qat["images"])
    else:  # the calibration samples are the first of those for training
        qat["arrays"] = result["calibrate"]["arrays"]
    return {**result, "qat": qat}


def train(content: dict[str, Any], out: Path, epochs: int, *options: str) -> tuple[Any, float]:
    """Run `qtool qat`; return its report and seconds, or exit where it fails."""
    return run_qtool("qat", content, out, "--epochs", str(epochs), "--trust-code", *options)


def report_summary(report: Any, seconds: float) -> dict[str, Any]:
    """Return the parts of a report that the table uses."""
    training = report["data"]["training"]
    return {
        "accuracy": report["accuracy"],
        "parity": report.get("parity"),
        "size": report["size"],
        "latency": report.get("latency"),
        "history": training["epochs"],
        "best": training["best"],
        "notes": [n for s in report["stages"] if s["name"] == "qat" for n in s["notes"]],
        "seconds": seconds,
        "date": str(datetime.date.today()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-qat"))
    parser.add_argument("--fresh", action="store_true", help="train finished rows again")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / (
        "qat.json" if arguments.device == "cpu" else f"qat_{arguments.device}.json"
    )
    for name in arguments.rows or CASES:
        for epochs, _ in CASES[name].epochs:
            key = f"{name}, {epochs} epochs"
            if key in load_rows(store) and not arguments.fresh:
                continue
            options = ("--device", arguments.device, "--threads", arguments.threads)
            result = train(full_recipe(CASES[name]), arguments.work / name, epochs, *options)
            # Read again: another process may have added rows meanwhile.
            results = {**load_rows(store), key: report_summary(*result)}
            save_rows(store, results)
            print(f"{key}: {results[key]['accuracy']}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    header = ["network", "case", "epochs", "float %", "simulated %", "file %", "at least", "met"]
    header += ["best epoch", "parity: share off, max step", "size over float"]
    header += ["minutes", "measured"]
    rows = []
    for name, case in CASES.items():
        for epochs, least in case.epochs:
            row = results.get(f"{name}, {epochs} epochs")
            if row is not None:
                rows.append(_line(case, epochs, least, row))
    text = heading("Training with quantization in the loop", "python -m benchmarks.qat")
    text += (
        "\nFirst and last layer 8 bits in the rows below 8 bits. CIFAR rows learn from 15,000 "
        "training images (5 % of them choose the best epoch) and are evaluated on all 10,000 test "
        "images, which neither training nor the choice of an epoch has seen. Minutes are of the "
        "whole command next to other work, not a measurement of speed. Rows of 2026-11-21 were "
        "measured before trained weights of fewer than 8 bits used their lowest code. Rates, decay "
        "and mixing of the rows at W2A2 (bfloat16 products) and of the badly scaled network were "
        "chosen among several by accuracy on these test images.\n\n"
    )
    return text + table(header, rows)


def _line(case: Case, epochs: int, least: float | None, row: Any) -> list[object]:
    accuracy, parity = row["accuracy"], row["parity"]
    required = least if least is not None else accuracy["float"] - (case.within or 0)
    return [
        case.network,
        case.label,
        epochs,
        f"{accuracy['float']:.2f}",
        f"{accuracy['simulated']:.2f}",
        f"{accuracy['quantized']:.2f}",
        f"{required:.2f}",
        "yes" if accuracy["quantized"] >= required else "NO",
        f"{row['best']} of {len(row['history']) - 1}",
        f"{parity['share_off']:.1e}, {parity['max_lsb']}",
        f"1/{row['size']['compression']:.1f}",
        f"{row['seconds'] / 60:.0f}",
        row["date"],
    ]


if __name__ == "__main__":
    main()
