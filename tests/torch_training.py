"""Train a simulated network for a few steps, and compare its file with it."""

from pathlib import Path

import numpy as np
import onnx
import torch
from models import run

import qtool


def train_and_emit(
    model, plan, x: np.ndarray, target: np.ndarray, steps: int, lr: float, file: Path
):
    """Train with the quantizer xnor; return the learned plan.

    The loss must fall by a fifth, and the file in ONNX Runtime must compute what was trained.
    """
    module = qtool.simulate(model, plan, quantizer="xnor")
    inputs, targets = torch.from_numpy(x), torch.from_numpy(target)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(module.train()(inputs), targets)
        loss.backward()
        optimizer.step()
        module.project()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    learned = module.eval().plan()
    qtool.emit(model, learned, file)
    with torch.no_grad():
        expected = module(inputs).numpy()
    written = run(onnx.load(file), {"x": x})["y"]
    np.testing.assert_allclose(written, expected, atol=1e-3 * np.abs(expected).max())
    return learned
