"""Real networks from torch and from ONNX give files of equal accuracy and equal kernels."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from qtool.loading.pytorch import export as exporting
from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.recipe.loader import load_recipe

DATA = Path(os.environ.get("QTOOL_DATA", "missing"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="QTOOL_DATA names no folder"),
]

CIFAR = {
    "calibrate": {"images": "cifar10/train", "count": 512, "preprocess": "cifar10"},
    "evaluate": {"images": "cifar10/test", "count": 2000, "metric": "top1"},
}
SST2 = {
    "calibrate": {"arrays": "sst2/sst2_train.npz", "count": 512},
    "evaluate": {"arrays": "sst2/sst2_test.npz", "metric": "top1"},
}
FSDD = {
    "calibrate": {"arrays": "fsdd/fsdd_train.npz", "count": 512},
    "evaluate": {"arrays": "fsdd/fsdd_test.npz", "metric": "top1"},
}
RESNET = {
    "torch": "resnet_cifar:resnet20",
    "weights": "models/resnet20.pth",
    "input": {"input": ["N", 3, 32, 32]},
    "code": "arch",
}
TOKENS = {"shape": ["N", 48], "dtype": "int64"}
TRANSFORMER = {
    "torch": "sst2_net:sst2",
    "weights": "models/sst2_transformer2l.pth",
    "input": {"input_ids": TOKENS, "attention_mask": TOKENS},
    "code": "arch",
}
KEYWORDS = {
    "torch": "fsdd_net:dscnn",
    "weights": "models/fsdd_dscnn.pth",
    "input": {"input": ["N", 1, 40, 61]},
    "code": "arch",
}


def quantized(model, data, folder):
    """(accuracy of the file, of the float model, integer kernels, what is left) of one run."""
    path = DATA / f".qtool-test-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump({"model": model, **data}))
    try:
        recipe = load_recipe(path)
    finally:
        path.unlink()
    report = run_ptq(recipe, folder, RunOptions(trust_code=True))
    accuracy, kernels = report.accuracy, report.kernels
    print(json.dumps([str(model), accuracy.quantized, accuracy.float, kernels.integer]))
    return accuracy.quantized, accuracy.float, kernels.integer, kernels.stray_quantize


def program(folder):
    """ResNet-20 as a file of torch.export.save, with a dynamic batch."""
    sys.path.insert(0, str(DATA / "arch"))
    try:
        from resnet_cifar import resnet20
    finally:
        sys.path.remove(str(DATA / "arch"))
    net = resnet20()
    net.load_state_dict(torch.load(DATA / RESNET["weights"], weights_only=True))
    shapes = {"x": {0: torch.export.Dim("N")}}
    made = torch.export.export(net.eval(), (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(made, folder / "resnet20.pt2")
    return str(folder / "resnet20.pt2")


CASES = [
    ("models/resnet20.onnx", RESNET, CIFAR),
    ("models/sst2_transformer2l.onnx", TRANSFORMER, SST2),
    ("models/fsdd_dscnn.onnx", KEYWORDS, FSDD),
]


@pytest.mark.parametrize(("onnx", "factory", "data"), CASES, ids=["resnet", "sst2", "fsdd"])
def test_a_factory_gives_what_onnx_gives(onnx, factory, data, tmp_path, monkeypatch):
    expected = quantized(onnx, data, tmp_path / "onnx")
    results = [quantized(factory, data, tmp_path / "factory")]
    if factory is RESNET:
        results.append(quantized(program(tmp_path), data, tmp_path / "program"))
    monkeypatch.setattr(exporting, "_dynamic", lambda inputs: 1 / 0)
    results.append(quantized(factory, data, tmp_path / "traced"))
    for accuracy, float_accuracy, integer, stray in results:
        assert float_accuracy == pytest.approx(expected[1], abs=1e-9)
        # In percentage points: two images of 2000.
        assert accuracy == pytest.approx(expected[0], abs=0.1)
        assert integer == expected[2]
        assert stray == []
