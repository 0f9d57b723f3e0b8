"""qtool's files beside NNCF's own in OpenVINO: accuracy, and latency at batch 1 and 8.

    QTOOL_DATA=... python -m benchmarks.runtimes [NETWORK ...] [--nncf PYTHON] [--threads N]

NNCF quantizes in an environment of its own (``python -m venv V; V/bin/pip install nncf openvino``),
whose interpreter is ``--nncf``; without it the table has no such column. Both tools read the same
calibration samples, and all three files run in the OpenVINO of this environment.

Writes benchmarks/results/runtimes.md; finished networks are saved in runtimes.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.networks import absolute, data_folder
from benchmarks.timing import inputs_of, session
from qtool.data import DataSection, Dataset, open_dataset
from qtool.verification.latency.runtimes import Job, ThisMachine

SAMPLES = 300
"""Calibration samples of both tools: NNCF's default."""
BATCHES = (1, 8)
TARGETS = ("openvino", "onnxruntime-cpu")
"""qtool's file for OpenVINO, and the default one, which OpenVINO loads too."""


@dataclass(frozen=True)
class Network:
    """One network and its halves of the data.

    Attributes:
        model: file name below models/.
        calibrate, evaluate: sections of a recipe.
        model_type: NNCF's; None for networks of convolutions.
    """

    model: str
    calibrate: dict[str, Any]
    evaluate: dict[str, Any]
    model_type: str | None = None


def _imagenet(model: str, preprocess: str) -> Network:
    folder = "imagenet_sample/val"
    even, odd = ({"images": folder, "take": {"every": 2, "offset": k}} for k in (0, 1))
    return Network(model, {**even, "preprocess": preprocess}, odd)


NETWORKS: dict[str, Network] = {
    "mobilenet_v2_float": _imagenet("mobilenet_v2_float", "imagenet"),
    "squeezenet1_1": _imagenet("squeezenet1_1", "imagenet_227"),
    "resnet20": Network(
        "resnet20",
        {"images": "cifar10/train", "preprocess": "cifar10"},
        {"images": "cifar10/test", "take": {"every": 10}},
    ),
    "sst2_transformer2l": Network(
        "sst2_transformer2l",
        {"arrays": {"path": "sst2/sst2_train.npz"}},
        {"arrays": {"path": "sst2/sst2_test.npz"}},
        "transformer",
    ),
}

NNCF = """
import json, sys
import numpy as np, openvino as ov, nncf
source, samples, target, model_type, count = sys.argv[1:]
with np.load(samples) as archive:
    arrays = {name: archive[name] for name in archive.files}
feeds = [{name: a[k : k + 1] for name, a in arrays.items()} for k in range(int(count))]
options = {"model_type": nncf.ModelType.TRANSFORMER} if model_type == "transformer" else {}
model = nncf.quantize(
    ov.Core().read_model(source), nncf.Dataset(feeds), subset_size=int(count), **options
)
ov.save_model(model, target, compress_to_fp16=False)
print(json.dumps({"nncf": nncf.__version__, "openvino": ov.__version__}))
"""


def with_qtool(name: str, network: Network, target: str, folder: Path) -> Path:
    """Quantize with qtool's defaults for a target; return the file."""
    recipe = {
        "model": str(data_folder() / "models" / f"{network.model}.onnx"),
        "target": target,
        "calibrate": {**absolute(network.calibrate), "count": SAMPLES},
        # Accuracy of every file is measured below, in OpenVINO.
        "evaluate": {**absolute(network.evaluate), "simulate": 1},
    }
    out = folder / f"{name}-{target}"
    run_qtool("ptq", recipe, out, "--quiet")
    return out / "model.onnx"


def with_nncf(python: str, network: Network, data: Dataset, folder: Path) -> tuple[Path, str]:
    """Quantize with NNCF's defaults on the same samples; return the file and the versions."""
    source = data_folder() / "models" / f"{network.model}.onnx"
    specs = inputs_of(session(source))
    batches = list(data.batches(32))
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in specs}
    samples, target = folder / "calibration.npz", folder / f"{network.model}-nncf.xml"
    np.savez(samples, **arrays)
    words = [str(source), str(samples), str(target), network.model_type or "", str(data.count)]
    done = subprocess.run([python, "-c", NNCF, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{network.model}: NNCF failed with {done.returncode}: {done.stderr[-2000:]}")
    return target, done.stdout.splitlines()[-1]


def accuracy(path: Path, data: Dataset) -> float:
    """Return the top-1 accuracy of a file in OpenVINO, in %."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [each.get_any_name() for each in compiled.inputs]
    right = 0
    for batch in data.batches(16):
        scores = compiled({name: batch[name] for name in names})[compiled.output(0)]
        right += int((scores.argmax(1) == batch["label"]).sum())
    return 100 * right / data.count


def measure(
    name: str, network: Network, python: str | None, threads: int, folder: Path
) -> dict[str, Any]:
    """Quantize a network with both tools, and measure all files in OpenVINO."""
    source = data_folder() / "models" / f"{network.model}.onnx"
    specs = inputs_of(session(source))
    shared = {"preprocess": network.calibrate.get("preprocess")}
    sections = (
        {**absolute(network.calibrate), "count": SAMPLES},
        {**shared, **absolute(network.evaluate)},
    )
    calibration, evaluation = (
        open_dataset(DataSection.model_validate(each), specs) for each in sections
    )
    files: dict[str, Path] = {"float": source}
    files |= {target: with_qtool(name, network, target, folder) for target in TARGETS}
    row: dict[str, Any] = {"threads": threads}
    if python is not None:
        files["nncf"], row["versions"] = with_nncf(python, network, calibration, folder)
    row["accuracy"] = {key: accuracy(path, evaluation) for key, path in files.items()}
    row["samples"] = evaluation.count
    for size in BATCHES:
        batch = next(iter(evaluation.batches(size)))
        feeds = folder / f"feeds-{size}.npz"
        np.savez(feeds, **{each: batch[each] for each in specs})
        parts = {key: [path] for key, path in files.items()}
        job = Job("openvino", threads, size, parts, dict.fromkeys(files, feeds))
        (result,) = ThisMachine().perform([job], folder)
        row[f"batch{size}"] = {"ms": dict(result.ms), "reasons": dict(result.reasons)}
    return row


def _cells(row: dict[str, Any], key: str) -> list[str]:
    """Return accuracy, and milliseconds at each batch, of one file."""
    times = (row[f"batch{size}"] for size in BATCHES)
    shown = (
        f"{each['ms'][key]:.3g}" if key in each["ms"] else each["reasons"].get(key, "-")
        for each in times
    )
    return [f"{row['accuracy'][key]:.1f}" if key in row["accuracy"] else "-", *shown]


def write(rows: dict[str, Any]) -> None:
    """Write the table."""
    keys = ("float", "nncf", *TARGETS)
    header = ["network", "threads", "file", "top-1 %", *(f"batch {size}, ms" for size in BATCHES)]
    lines = [
        [name, rows[name]["threads"], key if key in ("float", "nncf") else f"qtool, {key}",
         *_cells(rows[name], key)]
        for name in NETWORKS
        if name in rows
        for key in keys
        if key in rows[name]["accuracy"]
    ]  # fmt: skip
    machine = ThisMachine().probe()
    versions = {rows[name]["versions"] for name in rows if "versions" in rows[name]}
    nncf = f"NNCF: {'; '.join(sorted(versions))}." if versions else "NNCF was not measured."
    samples = ", ".join(f"{name} {rows[name]['samples']}" for name in NETWORKS if name in rows)
    text = heading("qtool and NNCF in OpenVINO", "python -m benchmarks.runtimes --nncf PYTHON")
    text += (
        f"\nAll files run in OpenVINO {machine.versions['openvino']}, CPU plugin, float32, fixed "
        f"shapes. {nncf} Both tools: defaults, the same {SAMPLES} calibration samples. Times are "
        "medians of all files timed in turn, in one process for each batch size. Evaluation "
        f"samples: {samples}.\n\n"
    )
    (results_folder() / "runtimes.md").write_text(text + table(header, lines))


def main() -> None:
    """Measure the networks that are not finished, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[])
    parser.add_argument("--nncf", metavar="PYTHON", help="the interpreter that has nncf")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    store = results_folder() / "runtimes.json"
    rows = load_rows(store)
    for name in arguments.networks or NETWORKS:
        if name in rows and not arguments.networks:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(
                name, NETWORKS[name], arguments.nncf, arguments.threads, Path(folder)
            )
        save_rows(store, rows)
        print(name, json.dumps(rows[name]), flush=True)
    write(rows)


if __name__ == "__main__":
    main()
