"""Whole networks against ONNX Runtime, from $QTOOL_DATA/models."""

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from qtool.runtime.executor import Executor

DATA = os.environ.get("QTOOL_DATA")
MODELS = sorted(Path(DATA, "models").glob("*.onnx")) if DATA else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODELS, reason="QTOOL_DATA is unset or its models folder is empty"),
]


@pytest.mark.parametrize("path", MODELS or [None], ids=lambda p: p.stem if p else "none")
def test_a_network_agrees_with_the_runtime(path):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng, feeds = np.random.default_rng(0), {}
    for node in session.get_inputs():
        free = (4, *(64 for _ in node.shape[1:]))
        shape = [d if isinstance(d, int) else free[k] for k, d in enumerate(node.shape)]
        if node.type == "tensor(float)":
            feeds[node.name] = rng.normal(size=shape).astype(np.float32)
        else:
            high = 2 if "mask" in node.name else 100
            feeds[node.name] = rng.integers(1, high, shape).astype(np.int64)
    run = Executor(ir.load(path))
    with torch.no_grad():
        got = run(feeds)
    assert run.fallbacks == {}
    for have, want in zip(got.values(), session.run(None, feeds), strict=True):
        # float32 sums in another order, over tens of layers; relative to the largest output
        np.testing.assert_allclose(have.numpy(), want, rtol=0, atol=1e-4 * np.abs(want).max())
