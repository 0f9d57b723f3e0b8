"""The loops of docs/training.md run as they stand, and what they write is what they trained."""

import re

import numpy as np
import onnxruntime as ort
import pytest
from interpreters import ROOT, fresh

FILE_OF_THE_LOOP = """
import onnxruntime
session = onnxruntime.InferenceSession("net_w2a2.onnx")
scores = session.run(None, {session.get_inputs()[0].name: test[0].numpy()})[0]
with torch.no_grad():
    trained = module(test[0]).argmax(1).numpy()
print("agreement", (scores.argmax(1) == trained).mean())
"""
"""Compares the module that was trained with the file, on 512 samples of four classes."""


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)


def outputs(path) -> np.ndarray:
    session = ort.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: np.zeros((3, 1, 8, 8), np.float32)})[0]


@pytest.mark.slow
def test_the_loop_of_torch_alone_runs(tmp_path):
    done = fresh(examples()[0] + FILE_OF_THE_LOOP, tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.search(r"float ([\d.]+) calibrated ([\d.]+) trained ([\d.]+)", done.stdout)
    exact, calibrated, trained = map(float, found.groups())
    assert exact > 95 and trained >= calibrated > 90, done.stdout
    agreement = float(re.search(r"agreement ([\d.]+)", done.stdout)[1])
    assert agreement >= 0.99, done.stdout


@pytest.mark.slow
def test_the_loop_of_accelerate_runs(tmp_path):
    pytest.importorskip("accelerate")
    done = fresh(examples()[1], tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"loss ([\d.]+)", done.stdout)[1]) < 1.3  # ln 4 = 1.386 is chance
    assert outputs(tmp_path / "net_w3a4.onnx").shape == (3, 4)
