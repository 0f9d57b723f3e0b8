"""The results page of benchmarks.budget."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.machine import heading, table
from benchmarks.paired import mcnemar
from benchmarks.repair import pooled

Report = Mapping[str, Any]
LARGE = ("mobilenet_v2_float", "efficientnet_lite0", "squeezenet1_1")
SMALL = ("resnet20", "fsdd_dscnn", "sst2_transformer2l")
WIDTHS = (6, 5, 4)
# The largest drops of `ptq: auto` from W4A8: that of its gate, and where it says so.
WITHIN, SAID = 1.0, 2.0
# Seconds of a sensitivity scan on two cores.
SCAN_SECONDS = 60

FILE = ("float %", "file %", "drop", "at most", "bytes", "of float", "ms", "float ms")


def figures(folds: Sequence[Report], limit: float | None = None) -> list[object]:
    """Return the cells of FILE over all folds."""
    drop = pooled(folds, "float") - pooled(folds, "quantized")
    met = "" if limit is None else f"{limit} {'met' if drop <= limit + 5e-3 else 'NOT MET'}"
    return [
        f"{pooled(folds, 'float'):.2f}",
        f"{pooled(folds, 'quantized'):.2f}",
        f"{drop:.2f}",
        met or "-",
        max(fold["bytes"] for fold in folds),
        f"{max(fold['bytes'] / fold['float_bytes'] for fold in folds):.1%}",
        f"{np.mean([fold['ms'] for fold in folds]):.2f}",
        f"{np.mean([fold['float_ms'] for fold in folds]):.2f}",
    ]


def minutes(folds: Sequence[Report]) -> list[object]:
    """Return minutes of the search and of its CPU."""
    return [
        ", ".join(f"{fold['search_seconds'] / 60:.1f}{_limit(fold)}" for fold in folds),
        ", ".join(f"{fold['cpu_seconds'] / 60:.1f}" for fold in folds),
    ]


def _limit(fold: Report) -> str:
    """Return the time that a search had, where it had one."""
    return f" of {fold['time']}" if "time" in fold else ""


def section(title: str, header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a heading with its table; nothing where no row is measured."""
    return f"\n## {title}\n\n{table(header, lines)}" if lines else ""


SETTINGS = {
    "uniform": "uniform 8 bits",
    "auto": "auto from W4A8",
    "nncf": "NNCF, accuracy control",
}


def auto_table(rows: Mapping[str, list[Report]]) -> str:
    """Return `ptq: auto` beside uniform 8 bits."""
    lines = []
    for name in (*SMALL, *LARGE):
        for kind, title in SETTINGS.items():
            folds = rows.get(f"{kind}/{name}", [])
            if not folds:
                continue
            limit = WITHIN if kind != "uniform" else None
            steps = "; ".join(", ".join(r["name"] for r in f["rungs"]) or "-" for f in folds)
            verdict = ", ".join(fold["verdict"]["status"] for fold in folds)
            lines.append([name, title, *figures(folds, limit), *minutes(folds), verdict, steps])
    header = ("network", "setting", *FILE, "search min", "CPU min", "verdict", "steps used")
    return section("`ptq: auto`", header, lines)


def mixed_table(rows: Mapping[str, list[Report]]) -> str:
    """Return mixed precision beside uniform widths of the same bytes."""
    lines = []
    for name in (*SMALL, *LARGE):
        for width in WIDTHS:
            folds = rows.get(f"mixed{width}/{name}", [])
            if not folds:
                continue
            same, best = ([fold[key] for fold in folds] for key in ("uniform", "mixed"))
            agreements = (pooled(part, "agreement") for part in (same, best))
            drops = [pooled(part, "float") - pooled(part, "quantized") for part in (same, best)]
            gain = drops[0] - drops[1]
            least = 3.0 if drops[0] > 5 else 0.0
            pairs = [fold["only_one_right"] for fold in folds if "only_one_right" in fold]
            losses, wins = (sum(pair[k] for pair in pairs) for k in (0, 1))
            paired = [f"{wins} : {losses}", f"{mcnemar(wins, losses):.2g}"]
            lines.append(
                [
                    name,
                    width,
                    max(fold["bytes"] for fold in same),
                    max(fold["bytes"] for fold in best),
                    *(f"{drop:.2f}" for drop in drops),
                    f"{gain:.2f}",
                    f"{least:g} {'met' if gain >= least - 5e-3 else 'NOT MET'}",
                    *(paired if len(pairs) == len(folds) else ("", "")),
                    *(f"{agreement:.2f}" for agreement in agreements),
                    ", ".join(f"{fold['search_seconds'] / 60:.1f}" for fold in best),
                ]
            )
    header: tuple[str, ...] = ("network", "uniform bits", "uniform bytes", "mixed bytes")
    header = (*header, "uniform drop", "mixed drop", "gained points", "at least")
    header = (*header, "only mixed right : only uniform right", "p")
    header = (*header, "uniform agrees %", "mixed agrees %", "search min")
    return section("Mixed precision at equal bytes (`bits.budget`)", header, lines)


def other_tables(rows: Mapping[str, list[Report]]) -> str:
    """Return the tables of badly scaled channels, of a poisoned layer and of broken pipelines."""
    lines = [
        [granularity, *figures([row], 0.3), *minutes([row]), "; ".join(row["causes"]) or "-"]
        for fold in rows.get("badly_scaled/resnet20_badly_scaled", [])
        for granularity, row in fold.items()
    ]
    header: tuple[str, ...] = ("weight scales", *FILE, "search min", "CPU min", "causes named")
    text = section("Channels of very different ranges, `ptq: auto`, W8A8", header, lines)
    lines = [
        [
            ", ".join(fold["pair"]),
            ", ".join(fold["ranking"]),
            "met" if set(fold["ranking"][:2]) == set(fold["pair"]) else "NOT MET",
            ", ".join(fold["floats"]) or "-",
            *figures([fold], WITHIN),
        ]
        for fold in rows.get("partial/resnet20", [])
    ]
    header = ("poisoned between", "most damaging sites", "ranked first", "float layers", *FILE)
    text += section("Partial quantization of a network with one poisoned value", header, lines)
    header = ("network", "sites", "images", "s", "CPU s of the command", "CPU s / 2", "at most")
    scans = [
        [
            label.removeprefix("scan/"),
            row["sites"],
            64,
            f"{row['scan_seconds']:.0f}",
            f"{row['cpu_seconds']:.0f}",
            f"{row['cpu_seconds'] / 2:.0f}",
            f"{SCAN_SECONDS} {'met' if row['cpu_seconds'] / 2 <= SCAN_SECONDS else 'NOT MET'}",
        ]
        for label, folds in rows.items()
        if label.startswith("scan/")
        for row in folds
    ]
    text += section("Time of `qtool sensitivity`, 2 cores", header, scans)
    lines = [
        [title, row["verdict"]["status"], row["verdict"]["reason"], "; ".join(row["findings"])]
        for fold in rows.get("broken/resnet20", [])
        for title, row in fold.items()
    ]
    header = ("fault", "verdict", "reason", "findings")
    return text + section("Broken pipelines", header, lines)


NOTE = f"""
Calibration samples alone choose; accuracies are those of the files on the evaluation samples, on
both halves of 1000 images for ImageNet networks where both are there. `auto`: from weights of 4
bits rounded to nearest, gate max_drop {WITHIN:g}; within {SAID:g} points where it says that the
gate is not reached. Times are wall times on a machine with other work, so that a search had less of
a processor than its time says: ten minutes of two cores are 20 CPU minutes. NNCF's accuracy control
(8 bits, ONNX backend) reads as many calibration samples, and decides on others of them; its file is
measured by `qtool verify`. Only rows that were measured are shown.

Published beside mixed precision: OMPQ ([arXiv:2109.07865](https://arxiv.org/abs/2109.07865))
reports 71.27 of 72.0 % for MobileNetV2 at 1.5 MB without training.
"""


def page(kept: Mapping[str, Any]) -> str:
    """Return all tables."""
    rows: dict[str, list[Report]] = {}
    for label, result in sorted(kept.items()):
        rows.setdefault(label.rsplit("/", 1)[0], []).append(result)
    text = heading("An accuracy budget that acts", "python -m benchmarks.budget") + NOTE
    versions = {
        ", ".join(f"{name} {version}" for name, version in fold["versions"].items())
        for label, folds in rows.items()
        for fold in folds
        if label.startswith("nncf/")
    }
    text += f"\nRows of NNCF: {'; '.join(sorted(versions))}.\n" if versions else ""
    return text + auto_table(rows) + mixed_table(rows) + other_tables(rows)
