"""Every quantizer of `qtool list quantizers` on resnet20 at W2A2: 5,000 images, 6 epochs, 3 seeds.

    QTOOL_DATA=... python -m benchmarks.qat_quantizers [NAME ...] [--work DIR]

Finished runs are saved in benchmarks/results; a stopped one continues. Writes
benchmarks/results/qat_quantizers.md.
"""

import argparse
import os
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.qat import CASES, IMAGES, full_recipe, report_summary, train
from qtool.qat.quantizers import QAT_QUANTIZERS

EPOCHS, COUNT, SEEDS = 6, 5000, (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-qat-quantizers"))
    parser.add_argument("--threads", default=str(os.cpu_count()))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = results_folder() / "qat_quantizers.json"
    for seed in SEEDS:
        for name in arguments.names or QAT_QUANTIZERS:
            key = f"{name}, seed {seed}"
            if key in load_rows(store):
                continue
            case = CASES["resnet20_w2a2"]
            # Mixed images help only in longer trainings.
            case = replace(case, qat={**case.qat, **IMAGES, "quantizer": name, "count": COUNT})
            options = ("--seed", str(seed), "--threads", arguments.threads)
            result = train(full_recipe(case), arguments.work / f"{name}-{seed}", EPOCHS, *options)
            results = {**load_rows(store), key: report_summary(*result)}
            save_rows(store, results)
            print(f"{key}: {results[key]['accuracy']}", flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


def page(results: Mapping[str, Any]) -> str:
    """Return the results page."""
    rows, means = [], {}
    for name in QAT_QUANTIZERS:
        runs = [r for s in SEEDS if (r := results.get(f"{name}, seed {s}"))]
        if runs:
            scores = [r["accuracy"]["quantized"] for r in runs]
            each = ", ".join(f"{v:.2f}" for v in scores)
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            means[name] = statistics.mean(scores)
            rows.append((means[name], [name, each, f"{spread:.2f}"]))
    ordered = [[n, f"{mean:.2f}", *rest] for mean, (n, *rest) in sorted(rows, reverse=True)]
    title = f"Quantizers at W2A2: resnet20, {COUNT} images, {EPOCHS} epochs"
    text = heading(title, "python -m benchmarks.qat_quantizers")
    text += (
        "\nFirst and last layer 8 bits, labels and teacher, BatchNorm live, one learning rate for "
        "all, products in bfloat16 while training; evaluated on the 10,000 test images; % of the "
        "file in ONNX Runtime.\n\n"
    )
    text += table(["quantizer", "mean %", "seeds %", "deviation"], ordered)
    if not {"pact", "lsq", "lsq_plus"} <= means.keys():
        return text
    holds = means["pact"] < means["lsq"] <= means["lsq_plus"]
    apart = max(
        abs(r["accuracy"]["simulated"] - r["accuracy"]["quantized"]) for r in results.values()
    )
    off = max(r["parity"]["share_off"] for r in results.values())
    return text + (
        f"\nThe order of the literature, PACT < LSQ <= LSQ+, is {'' if holds else 'not '}that of "
        "the means; differences between neighbours are of the size of the seeds' deviation, after "
        f"222 steps from a calibrated plan. Simulation and file are at most {apart:.2f} points "
        f"apart (values that float32 puts on the other side of a tie), with {off:.0e} of the codes "
        "off layer by layer.\n"
    )


if __name__ == "__main__":
    main()
