"""Files of other projects that quantizers fail on: what a default run makes of each.

    QTOOL_DATA=... python -m benchmarks.odd_files [FILE ...] [--work DIR] [--fresh]

Face detectors get photographs, the text detector pages of rendered words, voice activity networks
a random sound, in calls that feed their states back. The files have no labelled data: the least
signal to noise of the outputs (and of the quantities in them) is compared on samples that nothing
was calibrated on. Finished rows are saved in odd_files.json. Writes
benchmarks/results/odd_files.md.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_row, table
from benchmarks.networks import data_folder, write_recipe

COUNT = 24  # samples, or calls of a stream, to calibrate with; as many are compared
MEAN, STD = ((np.array(v).reshape(3, 1, 1)) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

Arrays = dict[str, np.ndarray]


def photographs(size: int) -> np.ndarray:
    """Return photographs [2 COUNT, 3, size, size], 0 to 255, spread over the ImageNet sample."""
    files = sorted((data_folder() / "imagenet_sample" / "val").glob("*/*.jpg"))
    files = files[:: len(files) // (2 * COUNT)][: 2 * COUNT]
    images = [Image.open(f).convert("RGB").resize((size, size)) for f in files]
    return np.stack([np.asarray(i, np.float32) for i in images]).transpose(0, 3, 1, 2)


def normalized(name: str, size: int) -> Arrays:
    """Return photographs with ImageNet's mean and deviation."""
    return {name: ((photographs(size) / 255 - MEAN) / STD).astype(np.float32)}


def pages() -> Arrays:
    """Return pages of four rendered words each, with ImageNet's mean and deviation."""
    with np.load(data_folder() / "ocr" / "ocr_words.npz") as archive:
        words = archive["x"][: 8 * COUNT].astype(np.float32)
    images = words.reshape(2 * COUNT, 4 * words.shape[1], *words.shape[2:]).transpose(0, 3, 1, 2)
    return {"x": ((images / 255 - MEAN) / STD).astype(np.float32)}


def sound() -> Arrays:
    """Return calls of 512 samples behind the last 64 of the call before, as silero-vad reads."""
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.uniform(0.05, 1, 2 * COUNT), 512)
    waves = loudness * np.convolve(rng.standard_normal(2 * COUNT * 512), np.ones(8) / 8, "same")
    padded = np.concatenate([np.zeros(64), waves])
    rows = [padded[512 * k : 512 * k + 576] for k in range(2 * COUNT)]
    return {"input": np.stack(rows).astype(np.float32)[:, None]}


def features() -> Arrays:
    """Return calls of three frames of 41 features, as ten-vad reads."""
    rows = np.random.default_rng(0).standard_normal((2 * COUNT, 3, 41))
    return {"input_1": rows.astype(np.float32)}


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        path: below QTOOL_DATA/odd.
        kind: of network, in words.
        arrays: makes the samples, or calls, those to calibrate with first.
        loop: output -> the state that it is in the next call.
    """

    path: str
    kind: str
    arrays: Callable[[], Arrays]
    loop: Mapping[str, str] = field(default_factory=dict)


TEN_STATES = {f"output_{k}": f"input_{k}" for k in (2, 3, 6, 7)}
FILES = {
    "mnv3_detection": File(
        "OpenSeeFace__mnv3_detection_opt",
        "face detector with FusedConv and hard-swish",
        lambda: normalized("input", 224),
    ),
    "ppocr_v2_detector": File(
        "PaddleOCR-WebApp__ch_PP-OCRv2_det_infer",
        "text detector, sizes written as -1",
        pages,
    ),
    "yunet": File(
        "libfacedetection.train__yunet_n_dynamic",
        "face detector with 12 outputs",
        lambda: {"input": photographs(160)[:, ::-1].copy()},
    ),
    "silero_vad": File(
        "silero-vad__silero_vad_openvino_16k",
        "voice activity, a state [2, 1, 128]",
        sound,
        {"stateN": "state"},
    ),
    "ten_vad": File("ten-vad__ten-vad", "voice activity, four states", features, TEN_STATES),
    "trees": File(
        "Attention__model",
        "tree ensemble of opset 1",
        lambda: {"float_input": np.random.default_rng(0).random((2 * COUNT, 6), np.float32)},
    ),
}


def recipe_of(file: File, folder: Path) -> dict[str, Any]:
    """Write the samples of a file; return its recipe."""
    arrays, sections = file.arrays(), []
    for part, rows in (("fit", slice(0, COUNT)), ("test", slice(COUNT, None))):
        # A folder for each: a file of it is one stream.
        place = folder / part
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / "0.npz", **{k: v[rows] for k, v in arrays.items()})  # type: ignore[arg-type]
        sections.append({"arrays": str(place), **({"loop": dict(file.loop)} if file.loop else {})})
    model = str(data_folder() / "odd" / f"{file.path}.onnx")
    return {"model": model, "calibrate": sections[0], "evaluate": sections[1]}


def refusal(content: dict[str, Any], out: Path) -> str | None:
    """Return the sentence in which `qtool check` refuses a recipe, None where it does not."""
    path = write_recipe(content, out.with_name(f"{out.name}.yaml"))
    line = [sys.executable, "-m", "qtool", "check", str(path), "--json"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 3:
        return None
    sentence = done.stderr.partition("qtool: error: ")[2].strip()
    return sentence.replace(f"model {content['model']}: ", "")


def measure(file: File, out: Path) -> list[str]:
    """Return the cells of a row."""
    content = recipe_of(file, out.with_name(f"{out.name}-data"))
    sentence = refusal(content, out)
    if sentence is not None:
        return [file.kind, "-", "-", "-", f"exit 3: {sentence}"]
    report, _ = run_qtool("ptq", content, out)
    parts = [part for row in report["outputs"] for part in (row, *row.get("groups", ()))]
    worst = min((part["sqnr_db"] for part in parts if "sqnr_db" in part), default=None)
    kernels = ", ".join(f"{n} {op}" for op, n in report["kernels"]["integer"].items())
    return [
        file.kind,
        "-" if worst is None else f"{worst:.1f}",
        kernels or "none",
        f"{report['latency']['speedup']:.2f}",
        "ok" if report["parity"]["max_lsb"] <= 1 else f"differs by {report['parity']['max_lsb']}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-odd"))
    parser.add_argument("--fresh", action="store_true", help="measure finished files again")
    arguments = parser.parse_args()
    work, store = arguments.work.absolute(), results_folder() / "odd_files.json"
    work.mkdir(parents=True, exist_ok=True)
    for name in arguments.files or FILES:
        if name in load_rows(store) and not arguments.fresh:
            continue
        row = measure(FILES[name], work / name)
        save_row(store, name, row)
        print(name, *row, sep=" | ", flush=True)
    rows = load_rows(store)
    text = heading("Files of other projects", "python -m benchmarks.odd_files")
    text += (
        f"\nDefault recipe, {COUNT} samples or calls to calibrate with and {COUNT} others to "
        "compare on: the least signal to noise of the outputs, states and quantities in them. Few "
        "of the photographs show a face, and scores near 0 have a low ratio.\n\n"
    )
    header = ["file", "kind", "SQNR dB", "integer kernels", "speed over float", "result"]
    text += table(header, [[name, *rows[name]] for name in FILES if name in rows])
    store.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
