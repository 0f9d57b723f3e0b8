"""``qtool init`` on real networks: the float accuracy of its recipe, unedited, from $QTOOL_DATA."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qtool.pipeline.context import RunOptions
from qtool.pipeline.prepare import prepare
from qtool.recipe.loader import load_recipe
from qtool.runtime.ort_session import OrtSession
from qtool.steps.stage_cache import temporary_cache

DATA = Path(os.environ.get("QTOOL_DATA", "missing"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="QTOOL_DATA names no folder"),
]
NETWORKS = [  # file, folder, float accuracy in % on the evaluation part
    ("models/resnet20.onnx", "cifar10", 91.73),
    ("models/resnet56.onnx", "cifar10", 93.39),
    ("models/resnet20_badly_scaled.onnx", "cifar10", 91.73),
    ("models/mobilenet_v2_1.0_224.onnx", "imagenet_sample", 86.0),
    ("models/mobilenet_v2_float.onnx", "imagenet_sample", 84.6),
    ("models/efficientnet_lite0.onnx", "imagenet_sample", 77.2),
    ("models/squeezenet1_1.onnx", "imagenet_sample", 62.1),
    ("models/sst2_transformer2l.onnx", "sst2", 79.79),
    ("built/minilm_l6_sst2.onnx", "sst2", 79.6),
    ("models/fsdd_dscnn.onnx", "fsdd", 99.33),
]


def init(tmp_path: Path, model: Path, folder: Path) -> tuple[Path, str]:
    """Run ``qtool init`` on a model and a folder under other names; the recipe, and stdout."""
    if not model.is_file():
        pytest.skip(f"{model} is not there")
    (tmp_path / "net.onnx").symlink_to(model)
    (tmp_path / "stuff").symlink_to(folder)
    line = [sys.executable, "-m", "qtool", "init", "net.onnx", "stuff", "--out", "made.yaml"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return tmp_path / "made.yaml", done.stdout


def float_accuracy(recipe: Path) -> float:
    """Compute top-1 in % of the float model on the samples that the recipe evaluates."""
    with temporary_cache() as cache:
        prepared = prepare(load_recipe(recipe), cache, RunOptions(threads=1))
        hits, data = [], prepared.evaluation.dataset
        with OrtSession(prepared.context.model, level="basic") as session:
            for batch in data.batches(16):
                inputs = {name: batch[name] for name in prepared.context.inputs}
                scores = next(iter(session(inputs).values()))
                hits.append(scores.argmax(-1) == batch["label"])
    return 100 * float(np.concatenate(hits).mean())


@pytest.mark.parametrize(("model", "folder", "expected"), NETWORKS, ids=lambda value: str(value))
def test_the_recipe_reaches_the_accuracy_of_the_network(model, folder, expected, tmp_path):
    recipe, _ = init(tmp_path, DATA / model, DATA / folder)
    # More is welcome: `tf` fits efficientnet_lite0 ten points better than its figure.
    assert float_accuracy(recipe) >= expected - 1.0
