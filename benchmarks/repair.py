"""Weights of fewer than 8 bits after training, by repair step: drop, agreement, time, memory.

    QTOOL_DATA=... python -m benchmarks.repair [ROW ...] [--work DIR] [--folds 1] [--fresh]

A row is NETWORK, or NETWORK/SETTING. Every fold of a row is a `qtool ptq` run in a folder of its
own below --work; finished folds are kept in benchmarks/results. Writes
benchmarks/results/repair.md.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import run_qtool
from benchmarks.machine import (
    children_cpu,
    fold_options,
    heading,
    load_rows,
    results_folder,
    save_row,
    table,
)
from benchmarks.networks import NETWORKS, Network, data_folder, recipe
from benchmarks.ocr import WORDS

OUTER = {"first": 8, "last": 8}
CROP_224 = {
    "resize": 256,
    "crop": 224,
    "resize_mode": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@dataclass(frozen=True)
class Setting:
    """One column of the comparison.

    Attributes:
        title: in the table.
        weights: bits of all layers but the first and the last, which have 8.
        activations: bits.
        ptq: steps, or the name of a preset, as in a recipe.
        rewrite: optional rewrites.
        granularity: of the weights' scales.
        method: of the activations' ranges; None: the default.
    """

    title: str
    weights: int
    activations: int
    ptq: str | Sequence[str | Mapping[str, Any]]
    rewrite: tuple[str, ...] = ()
    granularity: str = "channel"
    method: str | Mapping[str, Any] | None = None


# What each step, and each part of gptq, contributes at 3 and 2 bits.
ABLATION: dict[str, tuple[str, tuple[str | Mapping[str, Any], ...]]] = {
    "rounding": ("rounding", ()),
    "bias": ("bias correction", ("bias_correction",)),
    "seqmse": ("sequential MSE, bias correction", ("seqmse", "bias_correction")),
    "ridge": ("ridge compensation", ("ridge_compensation",)),
    "comq": ("comq", ("comq",)),
    "gptq_symmetric": (
        "gptq towards W, without refinement",
        ({"gptq": {"asymmetric": False, "refine": 0}},),
    ),
    "gptq_unrefined": ("gptq without refinement", ({"gptq": {"refine": 0}},)),
    "gptq": ("gptq", ("gptq",)),
    "distilled": ("gptq, distillation", ("gptq", "distillation")),
    "learned": ("gptq, brecq, distillation", ("gptq", "brecq", "distillation")),
}

SETTINGS = {
    "w4a8_rounding": Setting("W4A8, rounding", 4, 8, ()),
    "w4a8_gptq": Setting("W4A8, gptq", 4, 8, ("gptq",)),
    "w4a8_gptq_all": Setting("W4A8, gptq, all samples", 4, 8, ({"gptq": {"samples": 512}},)),
    "w4a8_gptq_symmetric": Setting(
        "W4A8, gptq, symmetric target", 4, 8, ({"gptq": {"asymmetric": False}},)
    ),
    "w8a8_rounding": Setting("W8A8, rounding", 8, 8, ()),
    "w8a8_bias": Setting("W8A8, bias correction", 8, 8, ("bias_correction",)),
    "w8a8_gptq": Setting("W8A8, gptq", 8, 8, ("gptq",)),
    "w8a8_tensor": Setting("W8A8, one scale per tensor", 8, 8, (), granularity="tensor"),
    "w8a8_equalize": Setting("W8A8, equalize", 8, 8, (), ("equalize",)),
    "w8a8_tensor_equalize": Setting(
        "W8A8, one scale per tensor, equalize", 8, 8, (), ("equalize",), "tensor"
    ),
    **{
        f"w8a8_tensor_{name}": Setting(
            f"W8A8, one scale per tensor, equalize, {', '.join(steps)}",
            8,
            8,
            steps,
            ("equalize",),
            "tensor",
        )
        for name, steps in {
            "absorption": ("high_bias_absorption",),
            "analytic": ("high_bias_absorption", "analytic_bias_correction"),
            "bias": ("high_bias_absorption", "bias_correction"),
            "gptq": ("high_bias_absorption", "gptq"),
            "adaround": ("high_bias_absorption", "bias_correction", "adaround"),
        }.items()
    },
    # N2D2's three steps: normalized weights, thresholds of activations, rounding.
    **{
        f"w8a8_{name}{granularity}": Setting(
            f"W8A8, N2D2's steps, {title}, one scale per {granularity}",
            8,
            8,
            (),
            ("normalize_weights",),
            granularity,
            method,
        )
        for granularity in ("channel", "tensor")
        for name, title, method in (
            ("n2d2_mse_", "MSE", "mse"),
            ("n2d2_kl_", "KL", {"entropy": {"form": "n2d2"}}),
        )
    },
    "w8a8_affine": Setting(
        "W8A8, channel affine compensation", 8, 8, ("channel_affine_compensation",)
    ),
    "w4a8_fast": Setting("W4A8, fast", 4, 8, "fast"),
    "w8a8_default": Setting("W8A8, default (int8)", 8, 8, "int8"),
    **{
        f"w{bits}a8_{name}": Setting(f"W{bits}A8, {title}", bits, 8, steps)
        for bits in (3, 2)
        for name, (title, steps) in ABLATION.items()
    },
    "w4a4_rounding": Setting("W4A4, rounding", 4, 4, ()),
    "w4a4_gptq": Setting("W4A4, gptq", 4, 4, ("gptq",)),
    "w4a4_fast": Setting("W4A4, fast", 4, 4, "fast"),
    "w4a4_best": Setting("W4A4, best", 4, 4, "best"),
}
DEFAULT = ("w4a8_rounding", "w4a8_gptq")

# Largest drop in points, first and last layer 8 bits; W4A8 by closed-form steps alone.
TARGETS = {
    ("resnet20", "w4a8_gptq"): 0.6,
    ("resnet56", "w4a8_gptq"): 0.5,
    ("mobilenet_v2_float", "w4a8_gptq"): 3.5,
    ("efficientnet_lite0", "w4a8_gptq"): 4.0,
    ("squeezenet1_1", "w4a8_gptq"): 4.0,
    ("fsdd_dscnn", "w4a8_gptq"): 1.0,
    ("sst2_transformer2l", "w4a8_gptq"): 0.5,
    **{
        (name, "w4a8_fast"): limit
        for name, limit in {
            "resnet20": 0.3,
            "resnet56": 0.3,
            "mobilenet_v2_float": 2.0,
            "efficientnet_lite0": 2.5,
            "squeezenet1_1": 2.5,
            "fsdd_dscnn": 0.67,
            "sst2_transformer2l": 0.5,
            "minilm_l6_sst2": 0.8,
            "ppocr_v4_rec": 1.5,
        }.items()
    },
    # 6 and 4 samples of 300 on fsdd_dscnn.
    **{
        (name, f"w4a4_{preset}"): limit
        for name, limits in {
            "resnet20": (1.5, 1.0),
            "resnet56": (1.2, 0.8),
            "mobilenet_v2_float": (15.0, 7.0),
            "efficientnet_lite0": (18.0, 9.0),
            "squeezenet1_1": (8.0, 5.0),
            "fsdd_dscnn": (2.0, 1.34),
            "sst2_transformer2l": (1.5, 1.0),
            "minilm_l6_sst2": (4.0, 2.5),
        }.items()
        for preset, limit in zip(("fast", "best"), limits, strict=True)
    },
    ("minilm_l6_sst2", "w4a8_gptq"): 1.0,
    ("ppocr_v4_rec", "w4a8_gptq"): 3.0,
    **{(name, "w8a8_default"): 0.1 for name in ("resnet20", "resnet56")},
    ("squeezenet1_1", "w8a8_default"): 0.5,
    ("fsdd_dscnn", "w8a8_default"): 0.0,
    ("sst2_transformer2l", "w8a8_default"): 0.3,
    ("minilm_l6_sst2", "w8a8_default"): 0.3,
    ("ppocr_v4_rec", "w8a8_default"): 0.5,
    ("mobilenet_v2_float", "w8a8_tensor_analytic"): 12,
    ("mobilenet_v2_float", "w8a8_tensor_bias"): 12,
    ("mobilenet_v2_float", "w8a8_tensor_gptq"): 1.5,
    ("mobilenet_v2_float", "w8a8_default"): 0.4,
    ("efficientnet_lite0", "w8a8_default"): 0.4,
}


def _imagenet(file: str, preprocess: Any) -> Network:
    halves = [{"images": "imagenet_sample/val", "take": {"every": 2, "offset": k}} for k in (0, 1)]
    common = {"count": 512, "preprocess": preprocess}
    folds = tuple(({**halves[k], **common}, halves[1 - k]) for k in (0, 1))
    return Network(f"models/{file}.onnx", folds)


NAMES: dict[str, Network] = {
    **{name: NETWORKS[name] for name in ("resnet20", "resnet56", "resnet20_badly_scaled")},
    "mobilenet_v2_float": _imagenet("mobilenet_v2_float", "imagenet"),
    "efficientnet_lite0": _imagenet("efficientnet_lite0", CROP_224),
    **{name: NETWORKS[name] for name in ("squeezenet1_1", "fsdd_dscnn", "sst2_transformer2l")},
    "minilm_l6_sst2": Network(
        "built/minilm_l6_sst2.onnx",
        (
            (
                {"arrays": {"path": "sst2/minilm_train.npz"}, "count": 512},
                {"arrays": {"path": "sst2/minilm_test.npz"}},
            ),
        ),
    ),
    "ppocr_v4_rec": WORDS,
}


def full_recipe(name: str, setting: Setting, fold: int) -> dict[str, Any]:
    """Return the recipe of one fold, paths absolute."""
    bits: dict[str, Any] = {"weights": setting.weights, "activations": setting.activations}
    if setting.weights < 8 or setting.activations < 8:
        bits["layers"] = OUTER
    bits["granularity"] = setting.granularity
    ptq = setting.ptq if isinstance(setting.ptq, str) else list(setting.ptq)
    plain = recipe(NAMES[name], fold, bits=bits, ptq=ptq)
    if setting.method is not None:
        plain["calibrate"] = {**plain["calibrate"], "method": setting.method}
    if setting.rewrite:
        plain["rewrite"] = list(setting.rewrite)
    # The table reads the file's accuracy; the simulated one only confirms it.
    plain["evaluate"]["simulate"] = 32
    return plain


def quantize(plain: dict[str, Any], out: Path, threads: str) -> dict[str, Any]:
    """Return what the table needs of one `qtool ptq` run; a failure ends the program."""
    before = children_cpu()
    report, seconds = run_qtool("ptq", plain, out, "--threads", threads, "--fresh", "--trust-code")
    cpu = children_cpu() - before
    steps = [row["step"] for row in report.get("ptq") or []]
    return {
        "accuracy": report["accuracy"],
        "parity": report["parity"],
        "compression": report["size"]["compression"],
        "ptq": report.get("ptq") or [],
        "step_seconds": sum(s["seconds"] for s in report["stages"] if s["name"] in steps),
        "step_mb": max([s["peak_rss_mb"] for s in report["stages"] if s["name"] in steps] or [0]),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "date": str(datetime.date.today()),
    }


def pooled(folds: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return a figure of the accuracy over the samples of all folds."""
    samples = [fold["accuracy"]["samples"] for fold in folds]
    total = sum(n * fold["accuracy"][key] for n, fold in zip(samples, folds, strict=True))
    return float(total / sum(samples))


def line(name: str, key: str, folds: Sequence[Mapping[str, Any]]) -> list[object]:
    """Return one row of the table."""
    drop, target = pooled(folds, "float") - pooled(folds, "quantized"), TARGETS.get((name, key))
    steps = [step for fold in folds for step in fold["ptq"] if not step.get("block")]
    return [
        name,
        SETTINGS[key].title,
        sum(fold["accuracy"]["samples"] for fold in folds),
        f"{pooled(folds, 'float'):.2f}",
        f"{pooled(folds, 'quantized'):.2f}",
        f"{drop:.2f}",
        "-" if target is None else f"{target} {'met' if drop <= target + 5e-3 else 'NOT MET'}",
        f"{pooled(folds, 'agreement'):.1f}" if "agreement" in folds[0]["accuracy"] else "-",
        ", ".join(f"{s['before']:.3g} -> {s['after']:.3g}" for s in steps) or "-",
        ", ".join(f"{fold['step_seconds'] / 60:.1f}" for fold in folds),
        f"{sum(fold['seconds'] for fold in folds) / 60:.1f}",
        f"{sum(fold['cpu_seconds'] for fold in folds) / 60:.1f}",
        max(fold["step_mb"] for fold in folds) or "-",
        f"{max(fold['parity']['share_off'] for fold in folds):.0e}",
        f"{folds[0]['compression']:.2f}",
    ]


HEADER = [
    *("network", "setting", "samples", "float %", "file %", "drop", "at most", "agreement %"),
    *("holdout distance", "step min", "run min", "CPU min", "step MB", "codes off", "compression"),
]
NOTE = """
First and last layer 8 bits below W8A8; one weight scale per output channel; activations uint8, by
the default method unless the row names another. At most 512 calibration samples without labels, 64
of which decide whether a step is kept (holdout distance: before and after). ImageNet networks:
calibrated on one half of 1000 images and evaluated on the other; both halves where the row has 1000
samples. gptq reads 256 of the samples unless the row says all. Minutes of the step for each fold,
of the whole command with its verification, and of all its threads, measured on a machine with other
work: not a measurement of speed.

"""


def page(kept: Mapping[str, Any]) -> str:
    """Return the table."""
    rows = []
    for name in NAMES:
        for key in SETTINGS:
            every = [f"{name}/{key}/{fold}" for fold in range(len(NAMES[name].folds))]
            folds = [kept[row] for row in every if row in kept]
            if folds:
                rows.append(line(name, key, folds))
    text = heading("Repair without labels and without training", "python -m benchmarks.repair")
    return text + NOTE + table(HEADER, rows)


def main() -> None:
    options = fold_options(__doc__, "runs/benchmark-repair").parse_args()
    data_folder()
    options.work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / "repair.json"
    for row in options.rows or NAMES:
        name, _, setting = row.partition("/")
        for key in (setting,) if setting else DEFAULT:
            for fold in range(min(options.folds, len(NAMES[name].folds))):
                label = f"{name}/{key}/{fold}"
                if label in load_rows(store) and not options.fresh:
                    continue
                plain = full_recipe(name, SETTINGS[key], fold)
                result = quantize(plain, options.work / label.replace("/", "-"), options.threads)
                save_row(store, label, result)
                print(label, result["accuracy"], flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


if __name__ == "__main__":
    main()
