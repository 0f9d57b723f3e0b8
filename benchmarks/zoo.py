"""Quantization of every construct: loads, runs, SQNR, and the result of quantize_static.

    python -m benchmarks.zoo [MODEL ...] [--fresh]

Models of benchmarks/zoo_models.py, zoo_patterns.py, zoo_streams.py and zoo_networks.py are ONNX
files, those of benchmarks/zoo_torch.py go through each of torch's exporters. Needs no data. Writes
benchmarks/results/zoo.md; finished rows are saved in zoo.json, so a stopped run continues; named
models, or all with --fresh, are measured again.
"""

import argparse
import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import benchmarks.zoo_models as zoo_models
from benchmarks.machine import heading, results_folder, table
from benchmarks.zoo_models import MODELS, REFUSED, Built
from benchmarks.zoo_networks import NETWORK_LOOPS, NETWORKS
from benchmarks.zoo_patterns import PATTERNS
from benchmarks.zoo_samples import Samples, first_output, run, samples_of
from benchmarks.zoo_streams import LOOPS, STREAMS
from qtool.errors import QtoolError
from qtool.metrics.registry import sqnr_db
from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.recipe.loader import recipe_from_options

Slices = tuple[tuple[int, int, int], ...]

# The ONNX files, by name.
FILES = {**MODELS, **PATTERNS, **STREAMS, **NETWORKS}

LEAST_DB = 20.0
COUNT = 512


@dataclass(frozen=True)
class Outcome:
    """Result of one model.

    Attributes:
        db: the least SQNR of the outputs, and of the quantities in them, against the float model;
            None where there is no file.
        kernels: integer kernels ONNX Runtime uses, in words.
        verdict: "ok", or the error.
        failed: True for a failure.
        slices: the quantities in the first output, as (axis, start, stop).
    """

    db: float | None
    kernels: str
    verdict: str
    failed: bool
    slices: Slices = ()


def least_db(slices: Slices, expected: np.ndarray, test: np.ndarray) -> float:
    """Return the least SQNR of the first output and of the quantities that it carries."""
    db = [sqnr_db(expected, test)]
    for axis, start, stop in slices:
        index = (*(slice(None),) * axis, slice(start, stop))
        db.append(sqnr_db(expected[index], test[index]))
    return min(db)


def evaluate(path: Path, samples: Samples, expected: np.ndarray | None = None) -> Outcome:
    """Quantize one ONNX file on random data, load and run what is written, and compare.

    Args:
        path: the float model; run folder and data are written to the same folder.
        samples: to calibrate with, and to compare on.
        expected: the float model's first output; None computes it from the file.
    """
    np.savez(path.with_suffix(".npz"), **samples.arrays)  # type: ignore[arg-type]
    out = path.with_suffix("")
    loop = [f"{part}.loop={json.dumps(samples.loop)}" for part in ("calibrate", "evaluate")]
    try:
        recipe = recipe_from_options(path, path.with_suffix(".npz"), loop if samples.loop else [])
        report = run_ptq(recipe, out, RunOptions(threads=1))
    except QtoolError as error:
        text = str(error).replace(f"model {path}: ", "")
        refused = path.stem in REFUSED and error.exit_code == 3
        return Outcome(None, "-", f"exit {error.exit_code}: {text}", not refused)
    except Exception as error:  # the table shows crashes
        return Outcome(None, "-", f"CRASH {type(error).__name__}: {error}", True)
    if expected is None:
        converted = sorted((out / ".stages").glob("float-*.onnx"))
        expected = first_output(converted[0] if converted else path, samples)
    first = next((row.groups or () for row in report.outputs or ()), ())
    slices = tuple((group.axis, group.start, group.stop) for group in first)
    db = least_db(slices, expected, first_output(out / "model.onnx", samples))
    parts = [part for row in report.outputs or () for part in (row, *(row.groups or ()))]
    db = min([db, *(part.sqnr_db for part in parts if part.sqnr_db is not None)])
    kernels = report.kernels.integer if report.kernels else {}
    sqnr = {layer.name: layer.sqnr_db for layer in report.layers if layer.sqnr_db is not None}
    worst = min(sqnr, key=lambda name: sqnr[name], default="-")
    verdict = "ok" if db >= LEAST_DB else f"BELOW {LEAST_DB:.0f} dB (worst {worst})"
    if report.passed is False:
        verdict += ", PARITY"
    words = ", ".join(f"{count} {kind}" for kind, count in kernels.items()) or "none"
    return Outcome(db, words, verdict, verdict != "ok", slices)


def built(name: str) -> Built:
    """Build one model of the ONNX zoo; its weights depend on its name alone."""
    zoo_models.rng = np.random.default_rng(list(name.encode()))
    return FILES[name]()


def prepared(name: str, folder: Path) -> tuple[Path, Samples]:
    """Write one model of the ONNX zoo to a folder; return its file and samples."""
    model, inputs = built(name)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    loop = {
        model.graph.output[k].name: state
        for k, state in {**LOOPS, **NETWORK_LOOPS}.get(name, {}).items()
    }
    return path, samples_of(inputs, COUNT, loop)


def of_onnx(name: str, folder: Path) -> Outcome:
    """Evaluate one model of the ONNX zoo."""
    return evaluate(*prepared(name, folder))


def of_torch(name: str, exporter: str, folder: Path) -> Outcome | None:
    """Evaluate one torch module and exporter against torch; None where torch cannot export it."""
    import torch

    from benchmarks.zoo_torch import MODULES
    from qtool.loading.pytorch.loader import TensorInput, export_to

    torch.manual_seed(0)
    module, inputs = MODULES[name]()
    path = folder / f"{name}.onnx"
    specs = [TensorInput(k, tuple(shape), dtype) for k, (shape, dtype, _) in inputs.items()]
    try:
        export_to(module, specs, path, exporters=[exporter])
    except QtoolError as error:
        if "torch cannot export the network" in str(error):
            return None
        return Outcome(None, "-", f"exit {error.exit_code}: {error}", True)
    samples, module = samples_of(inputs, COUNT, {}), module.eval()
    parts = []
    with torch.no_grad():
        for call in samples.calls():
            rows = {k: torch.from_numpy(v) for k, v in call.items()}
            result = module(*rows.values())
            first = next(iter(result.values())) if isinstance(result, Mapping) else result
            parts.append(first.float().numpy())
    return evaluate(path, samples, np.concatenate(parts))


def static_result(path: Path, samples: Samples, slices: Slices) -> str:
    """Quantize the file with onnxruntime's quantize_static; return its SQNR or failure.

    Args:
        path: the float model.
        samples: to calibrate with, and to compare on.
        slices: the quantities in the first output.
    """
    from benchmarks.baseline import quantize

    out = path.with_name(f"{path.stem}-static.onnx")
    # The samples that qtool calibrates on: every second one, with the states of the float file.
    step = samples.batch if samples.batch != 8 else 1
    feeds = (feeds for k, (feeds, _) in enumerate(run(path, samples, step)) if k % 2 == 0)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantize(path, feeds, out)
        db = least_db(slices, first_output(path, samples), first_output(out, samples))
    except Exception as error:
        return f"fails: {type(error).__name__}"
    return "unchanged" if db == float("inf") else f"{db:.1f} dB"


def _row(name: str, outcome: Outcome | None, other: str) -> list[object]:
    if outcome is None:
        return [name, "-", "-", "torch cannot export it so", "-"]
    return [
        name,
        "-" if outcome.db is None else f"{outcome.db:.1f}",
        outcome.kernels,
        outcome.verdict,
        other,
    ]


def measured(kind: str, name: str) -> list[object]:
    """Measure one row: the model in qtool, and its file in quantize_static.

    Args:
        kind: "onnx", or the name of a torch exporter.
        name: the model's.
    """
    from benchmarks.zoo_torch import MODULES

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if kind == "onnx":
            path, samples = prepared(name, folder)
            outcome: Outcome | None = evaluate(path, samples)
        else:
            outcome = of_torch(name, kind, folder)
            path, samples = folder / f"{name}.onnx", samples_of(MODULES[name]()[1], COUNT, {})
        if outcome is None:
            return _row(name, outcome, "-")
        return _row(name, outcome, static_result(path, samples, outcome.slices))


def main() -> None:
    from benchmarks.zoo_torch import MODULES
    from qtool.loading.pytorch.export import EXPORTERS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--fresh", action="store_true", help="measure finished models again")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    store = results_folder() / "zoo.json"
    results: dict[str, dict[str, list[object]]] = {}
    if store.is_file() and not arguments.fresh:
        results = json.loads(store.read_text())
    models = {"onnx": list(FILES), **{key: list(MODULES) for key in EXPORTERS}}
    for kind, names in models.items():
        rows = results.setdefault(kind, {})
        for name in names:
            if name not in arguments.models if arguments.models else name in rows:
                continue
            rows[name] = measured(kind, name)
            print(kind, *[str(c)[:110] for c in rows[name]], sep=" | ", flush=True)
            results[kind] = {name: rows[name] for name in names if name in rows}
            rows = results[kind]
            store.write_text(json.dumps(results, indent=1))
    text = _text({kind: list(rows.values()) for kind, rows in results.items()})
    missing = sum(len(names) - len(results[kind]) for kind, names in models.items())
    if missing:
        text += f"\n{missing} models are still to be measured.\n"
    (results_folder() / "zoo.md").write_text(text)


def _text(rows: dict[str, list[list[object]]]) -> str:
    header = ["model", "SQNR dB", "integer kernels", "verdict", "quantize_static"]
    text = heading("A zoo of constructs, W8A8", "python -m benchmarks.zoo")
    text += (
        "\nRandom weights and data, 256 calibration samples for both; the least SQNR of the "
        f"outputs and of the quantities in them against the float model on {COUNT} samples, at "
        f"least {LEAST_DB:.0f} dB. For torch "
        "modules the float model is torch itself; quantize_static gets the exported file and is "
        "compared with that. Where there is nothing to quantize, qtool exits with code 3.\n"
    )
    for kind, lines in rows.items():
        title = "ONNX files" if kind == "onnx" else f"Torch modules, by {kind}"
        text += f"\n## {title}\n\n{table(header, lines)}"
    return text


if __name__ == "__main__":
    main()
