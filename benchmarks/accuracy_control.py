"""Quantize with NNCF's accuracy control, and verify its ONNX file with qtool."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import children_cpu
from benchmarks.networks import Network, absolute, data_folder
from benchmarks.timing import inputs_of, session
from qtool.data import DataSection, Dataset, open_dataset

# Samples that calibrate and that decide, at most; of a smaller section each is a half.
CALIBRATE, VALIDATE = 512, 1024

PROGRAM = """
import json, sys, time
import numpy as np, onnx, onnxruntime, nncf
source, samples, target, model_type, max_drop, threads = sys.argv[1:]
def rows(kind):
    with np.load(samples) as archive:
        names = [n for n in archive.files if n.startswith(kind)]
        arrays = {n[len(kind):]: archive[n] for n in names}
    return [{n: a[k : k + 1] for n, a in arrays.items()} for k in range(len(arrays["label"]))]
def feeds(row):
    return {n: a for n, a in row.items() if n != "label"}
def validate(model, dataset):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    run = onnxruntime.InferenceSession(model.SerializeToString(), options)
    hits = [float(run.run(None, feeds(r))[0].argmax() == r["label"][0]) for r in dataset]
    return sum(hits) / len(hits), hits
options = {"model_type": nncf.ModelType.TRANSFORMER} if model_type == "transformer" else {}
start = time.perf_counter()
model = nncf.quantize_with_accuracy_control(
    onnx.load(source),
    nncf.Dataset(rows("calibrate/"), feeds),
    nncf.Dataset(rows("validate/")),
    validate,
    max_drop=float(max_drop) / 100,
    drop_type=nncf.DropType.ABSOLUTE,
    **options,
)
seconds = time.perf_counter() - start
onnx.save(model, target)
versions = {each.__name__: each.__version__ for each in (nncf, onnxruntime)}
print(json.dumps({"seconds": seconds, "versions": versions}))
"""


def with_accuracy_control(
    python: str, network: Network, fold: int, target: Path, settings: Mapping[str, str]
) -> dict[str, Any]:
    """Write NNCF's file; return its seconds, CPU seconds and versions.

    Args:
        python: interpreter of an environment with nncf and onnxruntime.
        network: with its data; evaluation samples are not read.
        fold: of the data.
        target: the file to write.
        settings: max_drop in points, model_type of NNCF and threads, as text.
    """
    source = data_folder() / network.model
    samples = target.with_suffix(".npz")
    _save_samples(network, fold, source, samples)
    words = [*map(str, (source, samples, target)), settings["model_type"]]
    before = children_cpu()
    done = subprocess.run(
        [python, "-c", PROGRAM, *words, settings["max_drop"], settings["threads"]],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{target.name}: NNCF failed with {done.returncode}: {done.stderr[-2000:]}")
    cpu = children_cpu() - before
    return {**json.loads(done.stdout.splitlines()[-1]), "cpu_seconds": cpu}


def _save_samples(network: Network, fold: int, source: Path, path: Path) -> None:
    """Write two disjoint parts of the calibration section: to calibrate on, and to decide by."""
    specs = inputs_of(session(source))
    section = {**absolute(network.folds[fold][0]), "count": None}
    whole = open_dataset(DataSection.model_validate(section), specs)
    count = min(CALIBRATE, whole.count // 2)
    first = [k * whole.count // count for k in range(count)]
    rest = sorted(set(range(whole.count)) - set(first))
    more = min(VALIDATE, len(rest))
    second = [rest[k * len(rest) // more] for k in range(more)]
    parts = {"calibrate/": whole.take(first), "validate/": whole.take(second)}
    arrays = {
        f"{kind}{name}": array
        for kind, part in parts.items()
        for name, array in _arrays(part, [*specs, "label"]).items()
    }
    np.savez(path, **arrays)


def _arrays(data: Dataset, names: list[str]) -> dict[str, np.ndarray]:
    batches = list(data.batches(32))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}
