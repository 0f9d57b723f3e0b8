"""W8A8 by rounding on six networks: accuracy, parity, and speed beside quantize_static.

    QTOOL_DATA=... python -m benchmarks.ptq_int8 [NETWORK ...] [--method mse]

Writes benchmarks/results/ptq_int8.md; finished networks are saved in ptq_int8.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baseline import quantize
from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.networks import NETWORKS, Network, data_folder, recipe
from benchmarks.timing import in_turn, inputs_of, session
from qtool.data import DataSection, open_dataset
from qtool.metrics.registry import METRICS, agreement, paired_interval
from qtool.recipe.loader import load_recipe

ROUNDS = 5


def outputs(path: Path, section: DataSection) -> tuple[np.ndarray, np.ndarray]:
    """Return the first output on all samples, and the labels."""
    run = session(path, 2)
    specs = inputs_of(run)
    data = open_dataset(section, specs)
    parts = [run.run(None, {n: b[n] for n in specs})[0] for b in data.batches(16)]
    assert data.labels is not None
    return np.concatenate(parts), data.labels


def speeds(paths: list[Path], section: DataSection, threads: int, batch: int) -> list[list[float]]:
    """Time files in turn, ROUNDS rounds; return ms of each: medians of blocks of runs."""
    runs = [session(p, threads) for p in paths]
    specs = inputs_of(runs[0])
    first = next(iter(open_dataset(section, specs).batches(batch)))
    feeds = {n: first[n] for n in specs}
    for run in runs:
        for _ in range(5):
            run.run(None, feeds)
    return in_turn(runs, feeds, ROUNDS, 0.5, 10, statistics.median)


def measure(name: str, network: Network, method: str, folder: Path) -> dict[str, Any]:
    scores: dict[str, list[np.ndarray]] = {"float": [], "qtool": [], "quantize_static": []}
    tops: list[tuple[np.ndarray, np.ndarray]] = []
    row: dict[str, Any] = {"folds": []}
    for fold in range(len(network.folds)):
        plain = recipe(network, fold)
        plain["calibrate"]["method"] = method
        plain["ptq"] = []  # like for like: quantize_static rounds too
        out = folder / f"{name}-{fold}"
        report, seconds = run_qtool("ptq", plain, out, "--quiet")
        resolved = load_recipe(out / "recipe.yaml")
        assert resolved.evaluate is not None
        eval_data = DataSection.model_validate(
            {
                **resolved.evaluate.model_dump(include=set(DataSection.model_fields)),
                "preprocess": resolved.calibrate.preprocess,
            }
        )
        specs = inputs_of(session(resolved.model, 1))
        calibration = open_dataset(resolved.calibrate, specs)
        static = folder / f"{name}-{fold}-qs.onnx"
        feeds = ({n: b[n] for n in specs} for b in calibration.batches(1))
        quantize(resolved.model, feeds, static)
        files = {"float": resolved.model, "qtool": out / "model.onnx", "quantize_static": static}
        results = {}
        for key, file in files.items():
            results[key], labels = outputs(Path(file), eval_data)
            scores[key].append(METRICS["top1"].scores(results[key], labels))
        tops.append((results["float"], results["qtool"]))
        row["folds"].append({"report": report, "seconds": seconds})
        if fold == 0:
            for batch, threads in ((1, 1), (8, 1), (1, 2)):
                ms = speeds([Path(f) for f in files.values()], eval_data, threads, batch)
                over_static = [r / q for q, r in zip(ms[1], ms[2], strict=True)]
                over_float = [f / q for f, q in zip(ms[0], ms[1], strict=True)]
                row[f"speed_b{batch}_t{threads}"] = {
                    "float_ms": statistics.median(ms[0]),
                    "qtool_ms": statistics.median(ms[1]),
                    "over_quantize_static": statistics.median(over_static),
                    "over_float": statistics.median(over_float),
                }
    pooled = {k: np.concatenate(v) for k, v in scores.items()}
    drop, lo, hi = paired_interval(pooled["float"], pooled["qtool"])
    row["accuracy"] = {k: 100 * float(v.mean()) for k, v in pooled.items()}
    row |= {"drop": drop, "ci": [lo, hi], "samples": len(pooled["float"])}
    a, b = (np.concatenate([t[k] for t in tops]) for k in (0, 1))
    row["agreement"] = agreement(a, b)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[])
    parser.add_argument("--method", default="mse")
    parser.add_argument("--fresh", action="store_true", help="measure finished networks again")
    arguments = parser.parse_args()
    data_folder()
    store = results_folder() / "ptq_int8.json"
    results = load_rows(store)
    for name in arguments.networks or NETWORKS:
        if name in results and not arguments.fresh and not arguments.networks:
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, NETWORKS[name], arguments.method, Path(folder))
        save_rows(store, results)
        print(_row(name, results[name]), flush=True)
    write(results)


def _row(name: str, row: dict[str, Any]) -> list[object]:
    network, parity = NETWORKS[name], [f["report"]["parity"] for f in row["folds"]]
    exact = row["ci"][0] <= 0 <= row["ci"][1] and row["agreement"] >= 97
    speed, accuracy = row["speed_b1_t1"], row["accuracy"]
    met: str = "-"
    if network.max_drop is not None and network.min_speed is not None:
        good = row["drop"] <= network.max_drop or exact
        met = "yes" if good and speed["over_quantize_static"] >= network.min_speed else "NO"
    simulated = statistics.mean(f["report"]["accuracy"]["simulated"] for f in row["folds"])
    return [
        name,
        f"{accuracy['float']:.2f}",
        f"{simulated:.2f}",
        f"{accuracy['qtool']:.2f}",
        f"{accuracy['quantize_static']:.2f}",
        f"{row['drop']:+.2f} [{row['ci'][0]:+.2f}, {row['ci'][1]:+.2f}]",
        "-" if network.max_drop is None else network.max_drop,
        f"{row['agreement']:.1f}",
        f"{speed['over_quantize_static']:.2f}",
        network.min_speed or "-",
        f"{speed['over_float']:.2f}",
        _pair(row["speed_b8_t1"]),
        _pair(row["speed_b1_t2"]),
        f"{max(p['share_off'] for p in parity):.1e}, {max(p['max_lsb'] for p in parity)}",
        met,
    ]


def _pair(speed: dict[str, float]) -> str:
    return f"{speed['over_quantize_static']:.2f} / {speed['over_float']:.2f}"


def write(results: dict[str, Any]) -> None:
    """Write the table."""
    header = [
        "network",
        "float %",
        "simulated %",
        "qtool %",
        "quantize_static %",
        "drop [95 %]",
        "limit",
        "agreement %",
        "speed over quantize_static (b1 t1)",
        "limit",
        "over float (b1 t1)",
        "b8 t1: over static / float",
        "b1 t2: over static / float",
        "parity: share off, max step",
        "met",
    ]
    rows = [_row(name, results[name]) for name in NETWORKS if name in results]
    text = heading("W8A8 on seven networks", "python -m benchmarks.ptq_int8")
    text += (
        "\n512 calibration samples (500 on the ImageNet sample, two folds pooled); quantize_static "
        "is onnxruntime's own: QDQ, uint8 activations, int8 per-channel weights, MinMax, the same "
        "samples. The simulation ran on at most 512 samples. Speeds are medians of 5 interleaved "
        "rounds; b = batch, t = threads. A limit is met when the drop is within it, or when zero "
        "lies in the interval and agreement is at least 97 %.\n\n"
    )
    (results_folder() / "ptq_int8.md").write_text(text + table(header, rows))


if __name__ == "__main__":
    main()
