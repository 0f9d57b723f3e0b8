"""The tools that install for ONNX, on the networks and the samples of benchmarks.repair.

    QTOOL_DATA=... python -m benchmarks.peers [ROW ...] --python onnxruntime=PYTHON
        [--python nncf=PYTHON ...] [--work DIR] [--threads N] [--limit MINUTES] [--fresh]

A row is TOOL/SETTING, TOOL/SETTING/NETWORK, or TOOL; none: all. Each tool needs an interpreter
whose environment has it:

    onnxruntime   pip install onnxruntime sympy
    nncf          pip install nncf onnxruntime onnx torch
    aimet         pip install aimet-onnx onnxruntime torch torchvision   (CPU builds of torch)
    quark         pip install amd-quark onnxruntime torch
    onnxsim       pip install onnxsim onnxruntime

Rows of a tool without interpreter are left as they are. Every file is verified by `qtool verify`
on the evaluation samples of fold 0; finished rows are kept in benchmarks/results. Writes
benchmarks/results/peers.md.
"""

import argparse
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import run_qtool
from benchmarks.machine import fold_options, load_rows, results_folder, save_row
from benchmarks.networks import absolute, data_folder, recipe
from benchmarks.peer_files import stored_layers
from benchmarks.peer_process import PeerError, run_peer, write_samples
from benchmarks.peers_page import page
from benchmarks.peers_settings import PEERS, SAMPLES, Setting
from benchmarks.repair import NAMES
from benchmarks.timing import inputs_of, session
from qtool.data import DataSection, open_dataset

FOLD = 0
ACCURACY = ("metric", "unit", "samples", "float", "quantized", "drop", "drop_ci95", "agreement")


@dataclass(frozen=True)
class Bench:
    """The place and the options of all runs.

    Attributes:
        work: folder of samples, files and reports.
        threads: of every run.
        limit: seconds that a tool may take for one file.
        pythons: the interpreter of each tool.
    """

    work: Path
    threads: str
    limit: float
    pythons: Mapping[str, str]


def measure(bench: Bench, key: str, name: str) -> dict[str, Any]:
    """Let a tool quantize a network, and verify its file; say what failed where something did."""
    setting, network = PEERS[key], NAMES[name]
    file = bench.work / f"{key.replace('/', '-')}-{name}.onnx"
    file.unlink(missing_ok=True)
    network.prepare()
    source = data_folder() / network.model
    samples, count = _samples(bench, setting, name)
    words = [*map(str, (source, samples, file)), bench.threads, name]
    tool, _, choice = key.partition("/")
    row: dict[str, Any] = {"samples": count, "date": str(datetime.date.today())}
    try:
        row |= run_peer(bench.pythons[tool], tool, [choice, *words], bench.limit)
        return row | _verified(bench, name, file)
    except PeerError as error:
        return row | {"failed": _last_line(str(error)), **_versions(bench.pythons[tool], tool)}


def _versions(python: str, tool: str) -> dict[str, Any]:
    """Return the versions that a program prints; nothing where even that fails."""
    try:
        return {"versions": run_peer(python, tool, ["versions"])["versions"]}
    except PeerError:
        return {}


def _samples(bench: Bench, setting: Setting, name: str) -> tuple[Path, int]:
    """Write the calibration samples, unless they are written; return their file and number."""
    network = NAMES[name]
    section = absolute(network.folds[FOLD][0])
    wanted = setting.fewer.get(name, SAMPLES)
    count = min(section.get("count", wanted), wanted)
    specs = inputs_of(session(data_folder() / network.model))
    data = open_dataset(DataSection.model_validate({**section, "count": count}), specs)
    path = bench.work / f"{name}-{count}.npz"
    if not path.is_file():
        write_samples(path, {"": data}, specs)
    return path, data.count


def _verified(bench: Bench, name: str, file: Path) -> dict[str, Any]:
    """Return accuracy, bytes and quantized layers of a file.

    Raises:
        PeerError: the tool wrote no file, or one that ONNX Runtime does not run.
    """
    if not file.is_file():
        raise PeerError("no file was written")
    out = bench.work / file.stem
    options = (str(file), "--threads", bench.threads, "--trust-code")
    try:
        report, _ = run_qtool("verify", recipe(NAMES[name], FOLD), out, *options)
    except SystemExit as error:
        raise PeerError(f"the file does not run: {error.code}") from error
    accuracy = report["accuracy"]
    return {
        "accuracy": {k: accuracy[k] for k in ACCURACY if k in accuracy},
        "bytes": report["size"]["quantized_bytes"],
        "float_bytes": report["size"]["float_bytes"],
        "layers": stored_layers(data_folder() / NAMES[name].model, file),
    }


def _last_line(text: str) -> str:
    """Return the last line that says something, without folders and modules."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w{3}", line)]
    return re.sub(r"(?:/[\w.+-]+)+/|(?:\w+\.)+(?=[A-Z]\w+: )", "", lines[-1])[:240]


def _parse() -> argparse.Namespace:
    parser = fold_options(__doc__, "runs/benchmark-peers")
    parser.add_argument(
        "--python", action="append", default=[], metavar="TOOL=PYTHON", help="may be repeated"
    )
    parser.add_argument("--limit", type=float, default=30, help="minutes of a tool for one file")
    return parser.parse_args()


def main() -> None:
    options = _parse()
    data_folder()
    options.work.mkdir(parents=True, exist_ok=True)
    pythons = dict(text.split("=", 1) for text in options.python)
    bench = Bench(options.work.absolute(), options.threads, 60 * options.limit, pythons)
    store = results_folder() / "peers.json"
    for row in options.rows or ("",):
        for key in PEERS:
            for name in NAMES:
                label = f"{key}/{name}"
                if not f"{label}/".startswith(f"{row}/" if row else ""):
                    continue
                if key.partition("/")[0] not in pythons or PEERS[key].cannot:
                    continue
                if label in load_rows(store) and not options.fresh:
                    continue
                result = measure(bench, key, name)
                save_row(store, label, result)
                print(label, result.get("failed") or result["accuracy"], flush=True)
    store.with_suffix(".md").write_text(page(load_rows(store)))


if __name__ == "__main__":
    main()
