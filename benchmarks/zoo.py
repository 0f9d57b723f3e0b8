"""Every construct quantized: does it load and run, how close is it, what does quantize_static do?

    python -m benchmarks.zoo [MODEL ...]

Needs no data. Writes benchmarks/results/zoo.md.
"""

import argparse
import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.machine import heading, results_folder, table
from benchmarks.zoo_models import MODELS, Inputs
from qtool.errors import QtoolError
from qtool.execute.ort_options import session_options
from qtool.metrics import sqnr_db
from qtool.pipeline import run_ptq
from qtool.recipe import recipe_from_options

LEAST_DB = 20.0
COUNT = 512


def data(inputs: Inputs, count: int) -> dict[str, np.ndarray]:
    """Random samples: normal floats, uniform integers, fair booleans."""
    rng = np.random.default_rng(3)
    found = {}
    for name, (shape, dtype, high) in inputs.items():
        size = [count, *[d if isinstance(d, int) else 14 for d in shape[1:]]]
        if dtype == "float32":
            found[name] = rng.standard_normal(size).astype(np.float32)
        else:
            found[name] = rng.integers(0, high, size).astype(dtype)
    return found


def outputs(path: Path, feeds: dict[str, np.ndarray], batch: int) -> np.ndarray:
    session = ort.InferenceSession(
        str(path), session_options(1), providers=["CPUExecutionProvider"]
    )
    rows = len(next(iter(feeds.values())))
    parts = [
        session.run(None, {k: v[s : s + batch] for k, v in feeds.items()})[0]
        for s in range(0, rows, batch)
    ]
    return np.concatenate(parts)


def one(name: str, folder: Path) -> list[object]:
    model, inputs = MODELS[name]()
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    feeds = data(inputs, COUNT)
    np.savez(folder / f"{name}.npz", **feeds)  # type: ignore[arg-type]
    first = next(iter(inputs.values()))[0][0]
    batch = first if isinstance(first, int) else 8
    expected = outputs(path, feeds, batch)
    recipe = recipe_from_options(path, folder / f"{name}.npz")
    try:
        report = run_ptq(recipe, folder / name, threads=1)
    except QtoolError as error:
        return [name, "-", "-", f"{type(error).__name__}: {error}", _rival(path, feeds, folder)]
    except Exception as error:  # a crash is what the table is there to show
        return [
            name,
            "-",
            "-",
            f"CRASH {type(error).__name__}: {error}",
            _rival(path, feeds, folder),
        ]
    found = outputs(folder / name / "model.onnx", feeds, batch)
    db = sqnr_db(expected, found)
    kernels = report.kernels.integer if report.kernels else {}
    words = ", ".join(f"{v} {k}" for k, v in kernels.items()) or "none"
    heard = {layer.name: layer.sqnr_db for layer in report.layers if layer.sqnr_db is not None}
    worst = min(heard, key=lambda name: heard[name], default="-")
    verdict = "ok" if db >= LEAST_DB else f"BELOW {LEAST_DB:.0f} dB (worst {worst})"
    if not report.passed:
        verdict += ", PARITY"
    return [name, f"{db:.1f}", words, verdict, _rival(path, feeds, folder)]


def _rival(path: Path, feeds: dict[str, np.ndarray], folder: Path) -> str:
    """What onnxruntime's own quantizer makes of it."""
    from benchmarks.baseline import quantize

    out = folder / f"{path.stem}-static.onnx"
    rows = len(next(iter(feeds.values())))
    shape = ort.InferenceSession(str(path)).get_inputs()[0].shape
    step = shape[0] if isinstance(shape[0], int) else 1
    # The samples that qtool calibrates on: every second one.
    seen = {k: v[::2] for k, v in feeds.items()}
    batches = ({k: v[s : s + step] for k, v in seen.items()} for s in range(0, rows // 2, step))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantize(path, batches, out)
        found = outputs(out, feeds, step if step > 1 else 8)
    except Exception as error:
        return f"fails: {type(error).__name__}"
    expected = outputs(path, feeds, step if step > 1 else 8)
    return f"{sqnr_db(expected, found):.1f} dB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for name in given.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one(name, Path(folder)))
        print(*[str(c)[:110] for c in rows[-1]], sep=" | ", flush=True)
    if given.models:
        return
    text = heading("A zoo of constructs, W8A8", "python -m benchmarks.zoo")
    text += (
        "\nRandom weights and data, 256 calibration samples for both; SQNR of the first output "
        f"against the float model on all {COUNT} samples, at least {LEAST_DB:.0f} dB.\n\n"
    )
    header = ["model", "SQNR dB", "integer kernels", "verdict", "quantize_static"]
    (results_folder() / "zoo.md").write_text(text + table(header, rows))


if __name__ == "__main__":
    main()
