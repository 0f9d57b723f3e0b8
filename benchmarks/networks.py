"""Networks and data of the benchmarks, below QTOOL_DATA; recipes as dicts."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


def data_folder() -> Path:
    """Return the folder QTOOL_DATA; exit with a message where it is not set."""
    folder = os.environ.get("QTOOL_DATA")
    if not folder or not Path(folder).is_dir():
        sys.exit(
            "QTOOL_DATA is not set to a folder: the benchmarks need real networks and data "
            "(models/, cifar10/, imagenet_sample/, sst2/, fsdd/); set it and run again"
        )
    return Path(folder)


@dataclass(frozen=True)
class Network:
    """One network with its data.

    Attributes:
        model: path below QTOOL_DATA.
        folds: (calibrate, evaluate) sections; several folds are pooled.
        max_drop: largest accepted drop in points.
        min_speed: smallest accepted speed over onnxruntime's quantize_static file.
        extra: more keys of the recipe.
        prepare: writes the data before a recipe names it.
    """

    model: str
    folds: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    max_drop: float | None = None
    min_speed: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None


def _cifar(name: str, max_drop: float | None, min_speed: float | None) -> Network:
    fold = (
        {"images": "cifar10/train", "count": 512, "preprocess": "cifar10"},
        {"images": "cifar10/test"},
    )
    return Network(f"models/{name}.onnx", (fold,), max_drop, min_speed)


def _imagenet(file: str, preprocess: str, max_drop: float, min_speed: float) -> Network:
    folder = "imagenet_sample/val"
    halves = [{"images": folder, "take": {"every": 2, "offset": k}} for k in (0, 1)]
    common = {"count": 512, "preprocess": preprocess}
    folds = (({**halves[0], **common}, halves[1]), ({**halves[1], **common}, halves[0]))
    return Network(f"models/{file}.onnx", folds, max_drop, min_speed)


def _arrays(file: str, train: Any, test: Any, max_drop: float, min_speed: float) -> Network:
    fold = ({"arrays": train, "count": 512}, {"arrays": test})
    return Network(f"models/{file}.onnx", (fold,), max_drop, min_speed)


NETWORKS: dict[str, Network] = {
    "resnet20": _cifar("resnet20", 0.2, 1.03),
    "resnet56": _cifar("resnet56", 0.2, 1.03),
    "mobilenet_v2": _imagenet("mobilenet_v2_1.0_224", "tf", 0.6, 1.5),
    "squeezenet1_1": _imagenet("squeezenet1_1", "imagenet_227", 0.8, 1.3),
    "fsdd_dscnn": _arrays(
        "fsdd_dscnn",
        {"path": "fsdd/fsdd_train.npz", "inputs": {"input": "x"}, "label": "y"},
        {"path": "fsdd/fsdd_test.npz", "inputs": {"input": "x"}, "label": "y"},
        0.34,
        1.15,
    ),
    "sst2_transformer2l": _arrays(
        "sst2_transformer2l",
        {"path": "sst2/sst2_train.npz"},
        {"path": "sst2/sst2_test.npz"},
        0.5,
        1.15,
    ),
    "resnet20_badly_scaled": _cifar("resnet20_badly_scaled", None, None),
}


def absolute(section: dict[str, Any]) -> dict[str, Any]:
    """Return a data section with its paths below QTOOL_DATA."""
    root = data_folder()
    result = dict(section)
    if "images" in result:
        result["images"] = str(root / result["images"])
    if "arrays" in result:
        arrays = dict(result["arrays"])
        result["arrays"] = {**arrays, "path": str(root / arrays["path"])}
    return result


def recipe(network: Network, fold: int, **changes: Any) -> dict[str, Any]:
    """Return the recipe of one fold as a dict with absolute paths; its data is written."""
    network.prepare()
    calibrate, evaluate = network.folds[fold]
    return {
        "model": str(data_folder() / network.model),
        "calibrate": absolute(calibrate),
        "evaluate": absolute(evaluate),
        **network.extra,
        **changes,
    }


def write_recipe(content: dict[str, Any], path: Path) -> Path:
    """Write a recipe file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
