"""Weights of 8 to 1 bits: bytes, kernels, bits of the outputs, speed, and memory after loading.

    QTOOL_DATA=... python -m benchmarks.lowbit [NETWORK ...] [--fresh]

Writes benchmarks/results/lowbit.md; finished rows are saved in benchmarks/results/lowbit.json.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir

import qtool
from benchmarks import resnet
from benchmarks.machine import heading, load_rows, results_folder, save_rows, table
from benchmarks.networks import NETWORKS, absolute, data_folder
from benchmarks.timing import in_turn, inputs_of, session
from qtool.api import Plan
from qtool.data import DataSection, open_dataset
from qtool.emitters import emit_qdq, save_model
from qtool.verification.file_size import file_bytes, weight_widths

Feeds = dict[str, np.ndarray]

# Limit of the file's size: share of payload and scales, bytes per layer and per channel.
SHARE, LAYER_BYTES, CHANNEL_BYTES = 1.03, 2500, 12
ROUNDS, SECONDS, CHILDREN = 11, 0.1, 3


@dataclass(frozen=True)
class Setting:
    """One row for every network.

    Attributes:
        bits: as in a recipe.
        memory: most memory after loading, over that of the int8 file.
        first_last: the first and the last layer have 8 bits.
        opset: of the file.
    """

    bits: Mapping[str, Any]
    memory: float | None = None
    first_last: bool = False
    opset: int = 21


ROWS = {
    "8": Setting({"weights": 8}),
    "6": Setting({"weights": 6}, 3.2),
    "4": Setting({"weights": 4}, 1.5),
    "3": Setting({"weights": 3}, 3.2),
    "2": Setting({"weights": 2}, 3.2),
    "2, opset 25": Setting({"weights": 2}, 1.5, opset=25),
    "1 (binary)": Setting({"weights": 1, "scheme": "binary"}, 3.2),
    "ternary": Setting({"weights": 2, "scheme": "ternary"}, 3.2),
    "k-means 16": Setting({"weights": 4, "scheme": "kmeans"}, 2.0),
    "4, first and last 8": Setting({"weights": 4}, 1.5, first_last=True),
    "8, weights only": Setting({"weights": 8, "activations": "float"}),
    "4, weights only": Setting({"weights": 4, "activations": "float"}),
}
FIRST_LAST = {"first": {"weights": 8}, "last": {"weights": 8}}
NAMES = ("resnet20", "mobilenet_v2", "squeezenet1_1", "sst2_transformer2l", "resnet18")

# Runs in a fresh process: megabytes of memory that loading and one run leave, and the load time.
CHILD = """
import json, sys, time
import numpy as np, psutil
import onnxruntime as ort
from qtool.runtime.ort_options import session_options

def resident():
    return psutil.Process().memory_info().rss / 1e6

with np.load(sys.argv[2]) as archive:
    feeds = dict(archive)
before, start = resident(), time.perf_counter()
session = ort.InferenceSession(sys.argv[1], session_options(1), ["CPUExecutionProvider"])
seconds, after = time.perf_counter() - start, resident()
session.run(None, feeds)
print(json.dumps([after - before, resident() - before, 1e3 * seconds]))
"""


def kernels(path: Path, folder: Path) -> list[str]:
    """Return the operators of the graph that ONNX Runtime executes, in order."""
    session(path, optimized=folder / "optimized.onnx")
    return [node.op_type for node in ir.load(folder / "optimized.onnx").graph]


def loaded(path: Path, feeds: Path) -> list[float]:
    """Load and run a file; return MB after loading, MB after one run, ms of loading."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(feeds)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{path} does not load: {done.stderr}")
    measured: list[float] = json.loads(done.stdout)
    return measured


def speeds(paths: list[Path], feeds: Feeds) -> list[list[float]]:
    """Time files in turn; return the ms of each one's fastest run by round (1 thread, batch 1)."""
    times = in_turn([session(p) for p in paths], feeds, ROUNDS + 1, SECONDS, 5, min)
    return [warm for _, *warm in times]


@dataclass(frozen=True)
class Material:
    """A network, its calibration batches, and samples to run."""

    model: Path
    batches: list[Feeds]
    feeds: Feeds


def material(name: str, folder: Path) -> Material:
    """Read a network and its data; the ResNet-18 is random and calibrated with noise."""
    if name == "resnet18":
        path = resnet.write(folder / "resnet18.onnx")
        rng = np.random.default_rng(0)
        noise = [rng.normal(0, 1, (8, 3, 224, 224)).astype(np.float32) for _ in range(3)]
        return Material(path, [{"input": x} for x in noise[:2]], {"input": noise[2]})
    network = NETWORKS[name]
    path = data_folder() / network.model
    section = DataSection.model_validate({**absolute(network.folds[0][0]), "count": 64})
    specs = inputs_of(session(path))
    batches = [{n: b[n] for n in specs} for b in open_dataset(section, specs).batches(16)]
    return Material(path, batches[:3], batches[3])


def limit(plan: Plan) -> float:
    """Return the largest allowed number of bytes of the file."""
    quantization = plan.quantization
    widths = weight_widths(plan._graph, quantization)
    payload = channels = 0.0
    for name, (count, bits) in widths.items():
        params = quantization.params(name)
        payload += count * bits / 8
        channels += params.scale.size if params is not None else 0
    return SHARE * (payload + CHANNEL_BYTES * channels) + LAYER_BYTES * len(widths)


def emitted(data: Material, setting: Setting, folder: Path, key: str) -> tuple[Path, Path, float]:
    """Write a packed file and one without packing; return both and the limit of the first."""
    model = qtool.load(_at_opset(data.model, setting.opset, folder))
    bits = dict(setting.bits) | ({"layers": FIRST_LAST} if setting.first_last else {})
    plan = qtool.quantize(model, data.batches, bits=bits, method="minmax", ptq=[], threads=2)
    paths = [folder / f"{key}-{kind}.onnx" for kind in ("packed", "plain")]
    for path, forms in zip(paths, (plan.target.packing, ()), strict=True):
        target = replace(plan.target, packing=forms)
        save_model(emit_qdq(plan._graph, plan.quantization, target), path)
    return paths[0], paths[1], limit(plan)


def _at_opset(path: Path, opset: int, folder: Path) -> Path:
    """Return the model, or a copy of it at a newer opset."""
    if opset == 21:
        return path
    copy = folder / f"opset{opset}.onnx"
    onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), copy)
    return copy


def measure(data: Material, setting: Setting, folder: Path, int8: Path) -> dict[str, Any]:
    """Measure one row; ``int8`` is the packed file of the row of 8 bits."""
    key = hashlib.sha256(repr(setting).encode()).hexdigest()[:8]
    packed, plain, most = emitted(data, setting, folder, key)
    one = {name: array[:1] for name, array in data.feeds.items()}
    want, got = (session(p).run(None, data.feeds) for p in (plain, packed))
    archive = folder / "feeds.npz"
    np.savez(archive, **one)  # type: ignore[arg-type]
    floats = setting.bits.get("activations") == "float"
    memory: list[list[list[float]]] = [[], []]
    for _ in range(CHILDREN):
        for k, path in enumerate((data.model if floats else int8, packed)):
            memory[k].append(loaded(path, archive))
    medians = [[statistics.median(column) for column in zip(*m, strict=True)] for m in memory]
    ms = speeds([data.model, int8, packed], one)
    row = {
        "bytes": file_bytes(packed),
        "float_bytes": file_bytes(data.model),
        "limit": most,
        "kernels": kernels(packed, folder) == kernels(int8, folder),
        "plain_kernels": kernels(packed, folder) == kernels(plain, folder),
        "equal": all(np.array_equal(a, b) for a, b in zip(want, got, strict=True)),
        "ms": [statistics.median(t) for t in ms],
        "over_float": statistics.median(a / b for a, b in zip(ms[0], ms[2], strict=True)),
        "over_int8": statistics.median(a / b for a, b in zip(ms[1], ms[2], strict=True)),
        "base": medians[0],
        "packed": medians[1],
    }
    for path in {packed, plain} - {int8}:
        path.unlink()
    return row


def written(cell: bool) -> str:
    return "yes" if cell else "NO"


def line(name: str, key: str, row: dict[str, Any]) -> list[object]:
    """Return one row of the table."""
    most = ROWS[key].memory
    ratio = row["packed"][0] / row["base"][0]
    floats = ROWS[key].bits.get("activations") == "float"
    return [
        name,
        key,
        f"{row['bytes'] / 1e3:.1f}",
        f"{row['float_bytes'] / row['bytes']:.2f}",
        f"{row['limit'] / 1e3:.1f}{'' if row['bytes'] <= row['limit'] else ' EXCEEDED'}",
        f"{row['over_float']:.2f}",
        "-" if floats else f"{row['over_int8']:.2f}",
        written(row["plain_kernels"]) if floats else written(row["kernels"]),
        written(row["equal"]),
        f"{row['packed'][2]:.0f} ({row['base'][2]:.0f})",
        f"{row['packed'][0]:.1f}, {row['packed'][1]:.1f}",
        f"{ratio:.2f}, {row['packed'][1] / row['base'][1]:.2f}"
        + ("" if most is None else f" of {most}"),
    ]


HEADER = [
    *("network", "weights", "file kB", "compression", "limit kB", "speed over float"),
    *("over int8", "same kernels", "same bits", "load ms (int8's)", "MB after load, after a run"),
    "over int8's",
]
NOTE = """
uint8 activations unless weights only; all layers at the width unless first and last have 8. Limit:
1.03 x (bits / 8 x weights + 12 bytes per output channel) + 2.5 kB per layer. Speed: one thread,
batch 1, the median over {rounds} rounds of the ratio of files run in turn, the fastest of their
runs in a round. Same kernels: the operators of the executed graph are those of the int8
file, in its order (weights only: those of the file with plain codes). Same bits: all outputs on 8
to 16 samples equal those of the same plan with codes in int8 initializers. Load times and memory of
rows with weights only are compared with the float file's. Memory is what a fresh process gains by
loading, and by loading and one run; medians of {children} processes. The allocator keeps what
folding used: with MALLOC_MMAP_THRESHOLD_=131072 in the environment a row takes about what the int8
file takes. ResNet-18 has random weights.

"""


def write(results: dict[str, dict[str, Any]]) -> None:
    """Write the table."""
    rows = [
        line(name, key, results[f"{name}/{key}"])
        for name in NAMES
        for key in ROWS
        if f"{name}/{key}" in results
    ]
    text = heading("Weights of 8 to 1 bits", "python -m benchmarks.lowbit")
    text += NOTE.format(rounds=ROUNDS, children=CHILDREN)
    (results_folder() / "lowbit.md").write_text(text + table(HEADER, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[])
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    arguments = parser.parse_args()
    data_folder()
    store = results_folder() / "lowbit.json"
    results = load_rows(store)
    for name in arguments.networks or NAMES:
        pending = [k for k in ROWS if arguments.fresh or f"{name}/{k}" not in results]
        if not pending:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            data = material(name, folder)
            int8, _, _ = emitted(data, ROWS["8"], folder, "int8")
            for key in pending:
                row = measure(data, ROWS[key], folder, int8)
                results[f"{name}/{key}"] = row
                save_rows(store, results)
                print(line(name, key, row), flush=True)
    write(results)


if __name__ == "__main__":
    main()
