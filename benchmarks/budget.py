"""An accuracy budget that acts: `ptq: auto`, `bits.budget`, partial quantization, diagnosis.

    QTOOL_DATA=... python -m benchmarks.budget [ROW ...] [--work DIR] [--folds 1] [--nncf PYTHON]

A row is KIND/NETWORK, such as auto/resnet20, or a KIND. Every run is a `qtool ptq` run in a folder
of its own below --work; finished rows are kept in benchmarks/results. Writes
benchmarks/results/budget.md. Rows of NNCF's accuracy control need an interpreter whose environment
has nncf and onnxruntime.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_control import with_accuracy_control
from benchmarks.budget_page import LARGE, SMALL, WIDTHS, WITHIN, Report, page
from benchmarks.command import run_qtool
from benchmarks.machine import children_cpu, fold_options, load_rows, results_folder, save_row
from benchmarks.networks import Network, data_folder, recipe
from benchmarks.paired import hits, only_one_right
from benchmarks.poison import poison
from benchmarks.repair import NAMES

LOW = {"weights": 4, "activations": 8}
PERMUTATION_SEED = 0


@dataclass(frozen=True)
class Bench:
    """The place and the options of all runs.

    Attributes:
        work: folder of the run folders.
        threads: of every run.
        time: of `ptq: auto`.
        nncf: an interpreter with NNCF; None: its rows are left out.
    """

    work: Path
    threads: str
    time: str = "10m"
    nncf: str | None = None

    @property
    def auto(self) -> dict[str, Any]:
        """The step of a recipe."""
        return {"auto": {"time": self.time}}

    def run(self, name: str, plain: dict[str, Any]) -> dict[str, Any]:
        """Return what the tables need of one `qtool ptq` run."""
        before = children_cpu()
        out = self.work / name.replace("/", "-")
        report, seconds = run_qtool("ptq", plain, out, "--threads", self.threads, "--fresh")
        cpu = children_cpu() - before
        return {**row_of(report), "seconds": seconds, "cpu_seconds": cpu}


def row_of(report: Report) -> dict[str, Any]:
    """Return what the tables need of a report."""
    search = report.get("search") or {}
    rungs = search.get("rungs") or []
    return {
        "accuracy": report["accuracy"],
        "bytes": report["size"]["quantized_bytes"],
        "float_bytes": report["size"]["float_bytes"],
        "ms": report["latency"]["quantized_ms"],
        "float_ms": report["latency"]["float_ms"],
        "verdict": report["verdict"],
        "findings": [row["finding"] for row in report.get("diagnosis") or []],
        "rungs": [rung for rung in rungs if rung["used"]],
        "causes": rungs[0].get("findings") or [] if rungs else [],
        "chosen": search.get("chosen"),
        "search_seconds": _seconds(report, "search"),
        "date": str(datetime.date.today()),
    }


def _seconds(report: Report, stage: str) -> float:
    return float(sum(s["seconds"] for s in report["stages"] if s["name"] == stage))


def _plain(name: str, fold: int, **changes: Any) -> dict[str, Any]:
    plain = recipe(NAMES[name], fold, **changes)
    # The tables read the file's accuracy; the simulated one only confirms it.
    plain["evaluate"]["simulate"] = 32
    return plain


# Rows. Each returns what is kept of it.


def auto(bench: Bench, name: str, fold: int) -> dict[str, Any]:
    """Let `ptq: auto` start from W4A8, with the gate max_drop 1.0."""
    gates = {"max_drop": WITHIN}
    plain = _plain(name, fold, bits=LOW, ptq=[bench.auto], gates=gates)
    return {**bench.run(f"auto-{name}-{fold}", plain), "time": bench.time}


def uniform(bench: Bench, name: str, fold: int) -> dict[str, Any]:
    """Quantize uniformly at 8 bits, with the default steps."""
    return bench.run(f"uniform-{name}-{fold}", _plain(name, fold))


def nncf(bench: Bench, name: str, fold: int) -> dict[str, Any]:
    """Let NNCF's accuracy control quantize to 8 bits, with the drop of the gate of `auto`."""
    file = bench.work / f"nncf-{name}-{fold}.onnx"
    kind = "transformer" if "transformer" in name else ""
    settings = {"max_drop": str(WITHIN), "model_type": kind, "threads": bench.threads}
    made = with_accuracy_control(str(bench.nncf), NAMES[name], fold, file, settings)
    out = bench.work / f"nncf-{name}-{fold}"
    plain = {**_plain(name, fold), "gates": {"max_drop": WITHIN}}
    report, _ = run_qtool("verify", plain, out, str(file), "--threads", bench.threads)
    return {**row_of(report), **made, "search_seconds": made["seconds"]}


def mixed(bench: Bench, name: str, fold: int, width: int) -> dict[str, Any]:
    """Compare a uniform width with mixed precision at the bytes of the uniform file."""
    bits: dict[str, Any] = {"weights": width, "activations": 8}
    folders = [f"{kind}{width}-{name}-{fold}" for kind in ("uniform", "mixed")]
    same = bench.run(folders[0], _plain(name, fold, bits=bits))
    bits = {**bits, "budget": {"bytes": str(same["bytes"])}}
    best = bench.run(folders[1], _plain(name, fold, bits=bits))
    right = [hits(_plain(name, fold), bench.work / out / "model.onnx") for out in folders]
    return {"uniform": same, "mixed": best, "only_one_right": only_one_right(*right)}


def badly_scaled(bench: Bench, name: str, fold: int) -> dict[str, Any]:
    """Let `ptq: auto` repair channels of very different ranges at W8A8."""
    rows = {}
    for granularity in ("channel", "tensor"):
        bits = {"weights": 8, "activations": 8, "granularity": granularity}
        plain = _plain(name, fold, bits=bits, ptq=[bench.auto], gates={"max_drop": 0.3})
        rows[granularity] = bench.run(f"badly-{granularity}-{fold}", plain)
    return rows


def poisoned(bench: Bench, name: str, fold: int) -> dict[str, Any]:
    """Poison one value in its ranges; rank the layers, and look for the fewest float ones."""
    file = bench.work / f"poisoned-{name}.onnx"
    pair = poison(data_folder() / NAMES[name].model, file)
    changes: dict[str, Any] = {"model": str(file), "ptq": []}
    out = bench.work / f"scan-{name}-{fold}"
    plain = _plain(name, fold, **changes)
    report, _ = run_qtool("sensitivity", plain, out, "--threads", bench.threads, "--samples", "64")
    rows = [row for row in report["sensitivity"] if row["kind"] == "both"]
    sites = sorted(
        (row for row in rows if row["site"] != "all" and not row["site"].startswith("op:")),
        key=lambda row: -row["kl"],
    )
    budget = {"max_drop": WITHIN, "among": [8, "float"]}
    bits = {"weights": 8, "activations": 8, "budget": budget}
    found = bench.run(f"partial-{name}-{fold}", _plain(name, fold, **changes, bits=bits))
    raised = (found["chosen"] or {}).get("bits", {}).get("layers", {})
    floats = [
        pattern.removeprefix("name:")
        for pattern, widths in raised.items()
        if widths["weights"] == "float"
    ]
    ranking = [row["site"] for row in sites]
    return {**found, "pair": pair, "ranking": ranking[:3], "floats": floats, "sites": len(sites)}


def scan(bench: Bench, name: str, fold: int) -> dict[str, Any]:
    """Time a sensitivity scan of all sites on 64 images."""
    plain = _plain(name, fold, ptq=[])
    plain["calibrate"]["count"] = 64
    before = children_cpu()
    options = ("--threads", bench.threads, "--samples", "64", "--fresh")
    report, seconds = run_qtool("sensitivity", plain, bench.work / f"scan-{name}-{fold}", *options)
    return {
        "sites": len({row["site"] for row in report["sensitivity"] if row["kind"] == "cumulative"}),
        "scan_seconds": _seconds(report, "sensitivity"),
        "seconds": seconds,
        "cpu_seconds": children_cpu() - before,
        "date": str(datetime.date.today()),
    }


def broken(bench: Bench, name: str, fold: int) -> dict[str, Any]:
    """Swap the colours of all images, and permute the labels of the evaluation."""
    swapped = _plain(name, fold)
    preprocess = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    swapped["calibrate"]["preprocess"] = {**preprocess, "color": "bgr"}
    permuted = _plain(name, fold)
    classes = sorted(p.name for p in Path(permuted["evaluate"]["images"]).iterdir() if p.is_dir())
    order = np.random.default_rng(PERMUTATION_SEED).permutation(len(classes))
    permuted["evaluate"]["classes"] = [classes[k] for k in order]
    return {
        "BGR for RGB": bench.run(f"bgr-{name}", swapped),
        "permuted labels": bench.run(f"permuted-{name}", permuted),
    }


@dataclass(frozen=True)
class Kind:
    """A kind of rows.

    Attributes:
        measure: returns what is kept of one fold of one network.
        networks: in the order of the table.
    """

    measure: Callable[[Bench, str, int], dict[str, Any]]
    networks: tuple[str, ...]


KINDS = {
    "uniform": Kind(uniform, (*SMALL, *LARGE)),
    "auto": Kind(auto, (*SMALL, *LARGE)),
    "nncf": Kind(nncf, (*SMALL, *LARGE)),
    **{f"mixed{w}": Kind(partial(mixed, width=w), (*SMALL, *LARGE)) for w in WIDTHS},
    "badly_scaled": Kind(badly_scaled, ("resnet20_badly_scaled",)),
    "partial": Kind(poisoned, ("resnet20",)),
    "scan": Kind(scan, ("mobilenet_v2_float",)),
    "broken": Kind(broken, ("resnet20",)),
}


def _folds(name: str, limit: int) -> int:
    network: Network = NAMES[name]
    return min(limit, len(network.folds))


def main() -> None:
    parser = fold_options(__doc__, "runs/benchmark-budget")
    parser.add_argument("--time", default="10m", help="of ptq: auto")
    parser.add_argument("--nncf", help="interpreter with nncf and onnxruntime")
    options = parser.parse_args()
    data_folder()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work.absolute(), options.threads, options.time, options.nncf)
    store = results_folder() / "budget.json"
    for row in options.rows or [kind for kind in KINDS if kind != "nncf" or options.nncf]:
        kind, _, network = row.partition("/")
        for name in (network,) if network else KINDS[kind].networks:
            for fold in range(_folds(name, options.folds)):
                label = f"{kind}/{name}/{fold}"
                if label in load_rows(store) and not options.fresh:
                    continue
                result = KINDS[kind].measure(bench, name, fold)
                save_row(store, label, result)
                print(label, flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


if __name__ == "__main__":
    main()
