"""The recognizer of printed words: its samples as a recipe reads them, and its metric."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.networks import Network, data_folder

MODEL = "models/ppocr_v4_rec.onnx"
FOLDER = Path("runs/benchmark-words").absolute()
# Words to calibrate with; the others are for evaluation.
CALIBRATION = 200


def write_words() -> None:
    """Write the words below FOLDER as the recognizer reads them: BGR, -1 to 1, NCHW."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with np.load(data_folder() / "ocr" / "ocr_words.npz") as archive:
        x, y = archive["x"], archive["y"]
    x = x[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    parts = {"calibrate": slice(0, CALIBRATION), "evaluate": slice(CALIBRATION, None)}
    for name, part in parts.items():
        np.savez(FOLDER / f"{name}.npz", x=x[part], word=y[part])


def _section(name: str) -> dict[str, Any]:
    return {"arrays": {"path": str(FOLDER / f"{name}.npz"), "label": "word"}}


WORDS = Network(
    MODEL,
    ((_section("calibrate"), {**_section("evaluate"), "metric": "benchmarks.ocr:words"}),),
    prepare=write_words,
)


def words(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return whether every word is read right: [samples].

    Args:
        outputs: probabilities of characters, [samples, steps, characters]; 0 is CTC's blank.
        labels: the words.
    """
    best = outputs.argmax(-1)
    is_new = np.diff(best, axis=1, prepend=0) != 0
    names = _characters()
    read = (
        "".join(names[k] for k in row[new & (row != 0)]).strip()
        for row, new in zip(best, is_new, strict=True)
    )
    return np.array([a == b for a, b in zip(read, labels, strict=True)])


words.unit = "%"  # type: ignore[attr-defined]


@cache
def _characters() -> list[str]:
    """Return the names of the classes."""
    properties = {p.key: p.value for p in onnx.load(data_folder() / MODEL).metadata_props}
    return ["", *properties["character"].split("\n"), " "]
