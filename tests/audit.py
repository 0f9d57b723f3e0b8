"""Recompute the numbers of a run's report.json from its files, without qtool.

    python tests/audit.py RUN

Needs numpy, ONNX Runtime, Pillow and PyYAML. Reads report.json, recipe.yaml, model.onnx, plan.npz,
the float model and the evaluation samples (class folders of images of the model's size, or one
.npz with the label y). Prints each number twice and exits with 1 where two differ.
"""

import hashlib
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import yaml
from PIL import Image

BATCH = 16
# Kernels that only move data are named in no list of the report.
MOVES = {"Transpose", "Reshape", "Flatten", "Concat", "Slice", "Pad", "Squeeze", "Unsqueeze"}
INTEGER = {"QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "NhwcMaxPool"}


@dataclass(frozen=True)
class Line:
    """One number: as the report says it, and as the files say it."""

    name: str
    reported: Any
    computed: Any
    tolerance: float = 0.0

    @property
    def agrees(self) -> bool:
        """True where both are equal, numbers up to the tolerance (the report's rounding)."""
        if isinstance(self.computed, float):
            return math.isclose(self.reported, self.computed, abs_tol=self.tolerance)
        return bool(self.reported == self.computed)


def audit(run: Path) -> list[Line]:
    """Return all numbers of a run that can be recomputed."""
    report = json.loads((run / "report.json").read_text())
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    lines = [*file_lines(run, report), *code_lines(run), *kernel_lines(run, report)]
    return lines + accuracy_lines(run, report, recipe)


def file_lines(run: Path, report: dict[str, Any]) -> Iterator[Line]:
    """Yield digests, sizes and the compression."""
    paths = {"model": Path(report["model"]["path"]), "output": run / report["output"]["path"]}
    for key, path in paths.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield Line(f"{key}.sha256", report[key]["sha256"], digest)
    before, after = (path.stat().st_size for path in paths.values())
    size = report["size"]
    yield Line("size.float_bytes", size["float_bytes"], before)
    yield Line("size.quantized_bytes", size["quantized_bytes"], after)
    yield Line("size.compression", size["compression"], before / after, 6e-5)


def code_lines(run: Path) -> Iterator[Line]:
    """Yield how many arrays of 8-bit codes in plan.npz stand in model.onnx as they are."""
    content = (run / "model.onnx").read_bytes()
    with np.load(run / "plan.npz") as plan:
        codes = [plan[name] for name in plan.files if name.startswith("codes/")]
    # Below 8 bits codes are packed.
    stored = [a for a in codes if a.dtype.itemsize == 1 and np.abs(a.astype(int)).max() > 7]
    found = sum(array.tobytes() in content for array in stored)
    yield Line("arrays of codes", len(stored), found)


def kernel_lines(run: Path, report: dict[str, Any]) -> Iterator[Line]:
    """Yield the kernels that ONNX Runtime executed, by its profiler."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(run / "model.onnx"), options)
        value = session.get_inputs()[0]
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        session.run(None, {value.name: np.zeros(shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [
        event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    counts = Counter(each["op_name"] for each in kernels)
    integer = {k: n for k, n in counts.items() if k.startswith("QLinear") or k in INTEGER}
    yield Line("kernels.integer", report["kernels"]["integer"], integer)
    others = {*integer, *MOVES, "QuantizeLinear", "DequantizeLinear"}
    # A kernel that reads codes and writes codes, such as a Clip, computes in no float.
    floats = Counter(
        each["op_name"]
        for each in kernels
        if each["op_name"] not in others and "float" in str(each["output_type_shape"])
    )
    yield Line("kernels.float", report["kernels"]["float"], dict(floats))


def accuracy_lines(run: Path, report: dict[str, Any], recipe: dict[str, Any]) -> list[Line]:
    """Return accuracy, agreement, drop and its interval."""
    samples, labels = read_samples(recipe)
    paths = (report["model"]["path"], str(run / "model.onnx"))
    classes = [predict(path, samples) for path in paths]
    right = [each == labels for each in classes]
    part = report["accuracy"]
    first, second = (100 * float(each.mean()) for each in right)
    lo, hi = interval(*right)
    agreement = 100 * float((classes[0] == classes[1]).mean())
    return [
        Line("accuracy.samples", part["samples"], len(labels)),
        Line("accuracy.float", part["float"], first, 1e-5),
        Line("accuracy.quantized", part["quantized"], second, 1e-5),
        Line("accuracy.drop", part["drop"], first - second, 1e-5),
        Line("accuracy.agreement", part["agreement"], agreement, 1e-4),
        Line("accuracy.drop_ci95[0]", part["drop_ci95"][0], lo, 1e-4),
        Line("accuracy.drop_ci95[1]", part["drop_ci95"][1], hi, 1e-4),
        *share_lines("quantized_ci95", part, second, len(labels)),
        *share_lines("agreement_ci95", part, agreement, len(labels)),
    ]


def share_lines(key: str, part: dict, share: float, n: int) -> list[Line]:
    """Return the lines of Wilson's interval (1927): where |s - p| = z sqrt(p (1 - p) / n)."""
    z2, s = 1.959963984540054**2 / n, share / 100
    roots = np.roots([1 + z2, -(2 * s + z2), s * s])
    return [
        Line(f"accuracy.{key}[{k}]", part[key][k], 100 * float(root.real), 1e-3)
        for k, root in enumerate(sorted(roots))
    ]


def interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the interval of Bonett and Price (2012) for paired proportions, in points."""
    n, lost, gained = len(first), np.sum(first & ~second), np.sum(second & ~first)
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = 1.959963984540054 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    drop = (lost - gained) / n
    return 100 * min(p - q - half, drop), 100 * max(p - q + half, drop)


def read_samples(recipe: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and the class numbers of the evaluation section."""
    section = recipe["evaluate"]
    if "arrays" in section:
        place = section["arrays"]
        with np.load(place if isinstance(place, str) else place["path"]) as archive:
            return archive["x"].astype(np.float32), archive["y"]
    options = section.get("preprocess") or recipe["calibrate"]["preprocess"]
    folders = sorted(p for p in Path(section["images"]).iterdir() if p.is_dir())
    files = [(k, f) for k, folder in enumerate(folders) for f in sorted(folder.iterdir())]
    pixels = np.stack([read_image(file, options) for _, file in files])
    return pixels, np.array([label for label, _ in files])


def read_image(file: Path, options: dict[str, Any]) -> np.ndarray:
    """Return an image as the network reads it: (pixel * scale - mean) / std, channels first."""
    assert "resize" not in options and "crop" not in options, "images of the model's size only"
    mode = "L" if options.get("color") == "gray" else "RGB"
    pixels = np.asarray(Image.open(file).convert(mode), np.float32)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    scaled = pixels * np.float32(options.get("scale", 1 / 255))
    mean, std = (
        np.float32(options.get(key, default)) for key, default in (("mean", 0), ("std", 1))
    )
    return ((scaled - mean) / std).transpose(2, 0, 1).astype(np.float32)


def predict(path: str, samples: np.ndarray) -> np.ndarray:
    """Return the class of each sample."""
    session = ort.InferenceSession(path, session_options())
    name = session.get_inputs()[0].name
    parts = [samples[k : k + BATCH] for k in range(0, len(samples), BATCH)]
    return np.concatenate([session.run(None, {name: part})[0].argmax(1) for part in parts])


def session_options() -> ort.SessionOptions:
    """Return options for one thread and no messages."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


if __name__ == "__main__":
    lines = audit(Path(sys.argv[1]))
    for line in lines:
        mark = "" if line.agrees else "   DIFFERS"
        print(f"{line.name:24} report {line.reported!s:40.40} files {line.computed!s:40.40}{mark}")
    sys.exit(0 if all(line.agrees for line in lines) else 1)
