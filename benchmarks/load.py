"""Time and memory of runs on much data and large models, at two sizes each.

    python -m benchmarks.load [ROW ...] [--work DIR] [--fresh]

Everything is synthetic and lies below --work, which is removed row by row. Finished rows are saved
in benchmarks/results/load.json, so a stopped run continues. Writes benchmarks/results/load.md.
"""

import argparse
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from PIL import Image

from benchmarks.command import run_qtool
from benchmarks.machine import heading, load_rows, results_folder, save_row, table
from benchmarks.zoo_models import Net, weight

# Growth of processor seconds from one size to the next, over that of a linear one, which fails.
MARGIN = 1.15
# Names of one file, at most; ext4 allows 65,000.
LINKS = 60_000
FOLDERS = 100
# Of the layers of the large network.
WIDTH, HIDDEN = 2048, 19_073
# Scale of a residual branch, with which thousands of them do not overflow.
BRANCH = 0.005

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One kind of load.

    Attributes:
        unit: of the sizes.
        sizes: the smaller one first.
        write: makes the inputs of a size in a folder; returns the recipe.
        options: more words of `qtool ptq`.
    """

    unit: str
    sizes: tuple[int, int]
    write: Callable[[Path, int], Recipe]
    options: tuple[str, ...] = ("--threads", "1")


def classifier(net: Net, x: str, channels: int) -> onnx.ModelProto:
    """Return the network with a pool and a layer of 4 classes behind a value."""
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.done(net.linear(x, 4, channels))[0]


def few_arrays(folder: Path, *shape: int) -> Recipe:
    """Write 16 samples to evaluate on; return the section."""
    x = np.random.default_rng(1).standard_normal((16, *shape), np.float32)
    np.savez(folder / "test.npz", x=x)
    return {"arrays": str(folder / "test.npz")}


def images(folder: Path, count: int) -> Recipe:
    """Write that many images of 8 x 8; all of them calibrate."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", ["N", 3, 8, 8]), 8, 3, 3, 3))
    onnx.save(classifier(net, x, 8), folder / "net.onnx")
    rng = np.random.default_rng(0)
    for k in range(count):
        place = folder / f"train/{k % FOLDERS:03}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{k:06}.png", compress_level=1)
    section = {"images": str(folder / "train"), "count": None, "preprocess": {"mean": 0.5}}
    return {
        "model": str(folder / "net.onnx"),
        "calibrate": section,
        "evaluate": few_arrays(folder, 3, 8, 8),
        "ptq": [],
    }


def names(folder: Path, count: int) -> Recipe:
    """Write that many names of a few images; 512 of them calibrate."""
    recipe = images(folder, -(-count // LINKS))
    files = sorted((folder / "train").rglob("*.png"))
    for place in {path.parent for path in files}:
        place.rename(folder / f"one-{place.name}")
    files = sorted(folder.glob("one-*/*.png"))
    for k in range(FOLDERS):
        (folder / f"train/{k:03}").mkdir(exist_ok=True)
    for k in range(count):
        os.link(files[k // LINKS], folder / f"train/{k % FOLDERS:03}/{k:07}.png")
    recipe["calibrate"] |= {"count": 512, "allow_overlap": True}
    return recipe


def layers(folder: Path, count: int) -> Recipe:
    """Write a network of that many convolutions, in residual pairs."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", ["N", 3, 4, 4]), 4, 3, 1, 1))
    for _ in range(count // 2 - 1):
        y = net.op("Relu", net.conv(x, 4, 4, 1, 1))
        kernel = net.const(BRANCH * weight(4, 4, 1, 1))
        x = net.op("Relu", net.op("Add", x, net.op("Conv", y, kernel)))
    onnx.save(classifier(net, x, 4), folder / "net.onnx")
    x = np.random.default_rng(0).standard_normal((16, 3, 4, 4), np.float32)
    np.savez(folder / "x.npz", x=x)
    return {
        "model": str(folder / "net.onnx"),
        "calibrate": {"arrays": str(folder / "x.npz")},
        "evaluate": few_arrays(folder, 3, 4, 4),
    }


def megabytes(folder: Path, count: int) -> Recipe:
    """Write a network with that many MB of weights, in a file of their own: pairs of 312.5 MB."""
    net, x, offset = Net(), "x", 0
    net.input("x", ["N", WIDTH])
    rng = np.random.default_rng(0)
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(round(count / 312.5)):
            for rows, columns in ((WIDTH, HIDDEN), (HIDDEN, WIDTH)):
                array = rng.standard_normal((rows, columns), np.float32)
                array *= np.float32((1.5 / rows) ** 0.5)
                array.tofile(file)
                place = {"location": "weights.bin", "offset": offset, "length": array.nbytes}
                offset += array.nbytes
                x = net.op("Relu", net.op("MatMul", x, external(net, array.shape, place)))
    onnx.save(net.done(net.linear(x, 4, WIDTH))[0], folder / "net.onnx")
    for name, seed in (("x", 1), ("test", 2)):
        data = np.random.default_rng(seed).standard_normal((4, WIDTH), np.float32)
        np.savez(folder / f"{name}.npz", x=data)
    return {
        "model": str(folder / "net.onnx"),
        "calibrate": {"arrays": str(folder / "x.npz"), "method": "minmax"},
        "evaluate": {"arrays": str(folder / "test.npz")},
        "ptq": [],
    }


def external(net: Net, shape: tuple[int, ...], place: Mapping[str, object]) -> str:
    """Add a weight that lies in another file; return its name."""
    name = f"w{len(net.constants)}"
    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    net.constants.append(tensor)
    return name


def samples(folder: Path, count: int) -> Recipe:
    """Write that many samples of 500 classes to evaluate on."""
    net = Net()
    x = net.op("Relu", net.linear(net.input("x", ["N", 32]), 64, 32))
    onnx.save(net.done(net.linear(x, 500, 64))[0], folder / "net.onnx")
    rng = np.random.default_rng(0)
    for name, rows in (("x", 512), ("test", count)):
        x = rng.standard_normal((rows, 32), np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=np.arange(rows) % 500)
    return {
        "model": str(folder / "net.onnx"),
        "calibrate": {"arrays": str(folder / "x.npz")},
        "evaluate": {"arrays": str(folder / "test.npz")},
    }


ROWS: Mapping[str, Row] = {
    "evaluation, 500 classes": Row("samples", (12_500, 50_000), samples),
    "convolutions": Row("layers", (750, 3_000), layers),
    "calibration on a folder": Row("images", (25_000, 100_000), images),
    "listing of a folder, 512 calibrate": Row("names", (250_000, 1_000_000), names),
    "weights in a file": Row("MB", (625, 2_500), megabytes),
}


def processor_seconds() -> float:
    """Return the processor seconds of all child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(row: Row, size: int, work: Path) -> dict[str, Any]:
    """Run one size of a row in a folder of its own; return what it took."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        folder = Path(scratch)
        recipe = row.write(folder, size)
        before = processor_seconds()
        report, seconds = run_qtool("ptq", recipe, folder / "run", *row.options)
        stages = sorted(report["stages"], key=lambda stage: -stage["seconds"])[:3]
        return {
            "seconds": round(seconds, 1),
            "processor": round(processor_seconds() - before, 1),
            "peak_mb": max(stage["peak_rss_mb"] for stage in report["stages"]),
            "longest": [f"{stage['name']} {stage['seconds']:.1f}" for stage in stages],
        }


def page(results: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    lines = []
    for name, row in ROWS.items():
        done = [results.get(f"{name} {size}") for size in row.sizes]
        for size, result in zip(row.sizes, done, strict=True):
            if result is None:
                continue
            numbers = [result[key] for key in ("seconds", "processor", "peak_mb")]
            growth = ""
            if size == row.sizes[1] and done[0] is not None:
                ratio, linear = result["processor"] / done[0]["processor"], size / row.sizes[0]
                growth = f"{ratio:.2f}{'' if ratio <= MARGIN * linear else ' TOO MUCH'}"
            longest = ", ".join(result["longest"])
            lines.append([name, f"{size:,} {row.unit}", *numbers, growth, longest])
    header = ["load", "size", "s", "CPU s", "peak MB", "CPU, times", "longest stages, s"]
    text = heading("Load", "python -m benchmarks.load")
    return (
        f"{text}\nWhole runs of `qtool ptq --threads 1`, on a busy machine: processor seconds "
        "count. From one size to the next the data or the model grows to 4 times.\n\n"
        + table(header, lines)
    )


def main() -> None:
    """Measure the rows that are not saved yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="parts of names; none: all")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qtool-load")
    parser.add_argument("--fresh", action="store_true", help="measure saved rows again")
    words = parser.parse_args()
    store = results_folder() / "load.json"
    for name, row in ROWS.items():
        if words.rows and not any(part in name for part in words.rows):
            continue
        for size in row.sizes:
            key = f"{name} {size}"
            if key not in load_rows(store) or words.fresh:
                result = measure(row, size, words.work)
                print(key, result, flush=True)
                # Other rows may have been measured beside this one.
                save_row(store, key, result)
    shutil.rmtree(words.work, ignore_errors=True)
    (results_folder() / "load.md").write_text(page(load_rows(store)))


if __name__ == "__main__":
    main()
