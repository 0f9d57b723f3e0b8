"""Time of one training step: torch module, float executor, fake-quantized, in turn.

    QTOOL_DATA=... python -m benchmarks.qat_speed

Writes benchmarks/results/qat_speed.md.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

import qtool
from benchmarks.machine import heading, results_folder, table
from benchmarks.networks import data_folder
from qtool.qat.trainable_module import TrainableModule
from qtool.runtime.memory import reused_memory

ROUNDS = 15
# network, batch, height and width, the torch module of the same weights
CASES = (("resnet20", 128, 32, "resnet_cifar:resnet20"), ("mobilenet_v2_1.0_224", 16, 224, None))
LIMITS = {"fake-quantized over float": 1.6, "float executor over torch module": 1.15}


class FloatSteps(nn.Module):
    """The executor's network with float weights, biases and live BatchNorm that learn."""

    def __init__(self, module: TrainableModule) -> None:
        super().__init__()
        self.network = module.network
        network = self.network
        self.constants: dict[str, nn.Parameter] = {
            **{name: network.weights[key] for key, name in network._names.items()},
            **{name: network.biases[key] for key, name in network._biases.items()},
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the first output."""
        network = self.network
        feeds = {str(network.executor._model.graph.inputs[0].name): x}
        output: torch.Tensor = network.executor(feeds, self._observe)[network.outputs[0]]
        return output

    def _observe(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        constant = self.constants.get(str(value.name))
        if constant is not None:
            return constant
        norm = self.network._hooks.get(str(value.name))
        if isinstance(norm, nn.Module) or norm is torch.zeros_like:
            normalized: torch.Tensor = norm(tensor)
            return normalized
        return tensor


def in_turn(steps: list[Callable[[], Any]]) -> list[float]:
    """Time steps in turn; return the median ms of each."""
    times: list[list[float]] = [[] for _ in steps]
    for round_ in range(ROUNDS + 2):
        for step, ms in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if round_ > 1:
                ms.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(ms) for ms in times]


def measure(name: str, batch: int, size: int, factory: str | None) -> list[object]:
    root = data_folder() / "models"
    x = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    images, labels = torch.from_numpy(x), torch.randint(0, 10, (batch,))
    plain, source = None, str(root / f"{name}.onnx")
    model: Any
    if factory is not None:
        module, function = factory.split(":")
        sys.path.insert(0, str(root.parent / "arch"))
        plain = getattr(importlib.import_module(module), function)().train()
        weights = str(root / f"{name}.pth")
        sizes = {"input": ["N", 3, size, size]}
        made = {"torch": factory, "weights": weights, "input": sizes}
        model = qtool.load(made, trust_code=True)
        plain = plain.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        model = qtool.load(source)
    bits = {"weights": 4, "activations": 4, "layers": {"first": 8, "last": 8}}
    plan = qtool.quantize(model, [x[:8]], bits=bits)
    learner = qtool.simulate(model, plan, quantizer="lsq").train()
    networks = [FloatSteps(learner), learner, *([plain] if plain is not None else [])]

    def step(network: nn.Module) -> None:
        F.cross_entropy(network(images), labels).backward()
        network.zero_grad(set_to_none=True)

    ms = in_turn([lambda n=n: step(n) for n in networks])  # type: ignore[misc]
    module_ms = ms[2] if plain is not None else None
    return [
        name,
        batch,
        "-" if module_ms is None else f"{module_ms:.0f}",
        f"{ms[0]:.0f}",
        f"{ms[1]:.0f}",
        "-" if module_ms is None else f"{ms[0] / module_ms:.2f}",
        f"{ms[1] / ms[0]:.2f}",
    ]


def main() -> None:
    with reused_memory():
        rows = [measure(*case) for case in CASES]
    header = ["network", "batch", "torch module ms", "float executor ms", "W4A4 LSQ ms"]
    header += ["executor over module (at most 1.15)", "W4A4 over float (at most 1.6)"]
    text = heading("One training step", "python -m benchmarks.qat_speed")
    text += (
        "\nForward, cross-entropy and backward on random images, medians of "
        f"{ROUNDS} interleaved rounds, {torch.get_num_threads()} threads. resnet20 starts from the "
        ".pth with BatchNorm on batch statistics, in channels-last; mobilenet_v2 is an ONNX file "
        "with BatchNorm folded, and has no torch module.\n\n"
    )
    (results_folder() / "qat_speed.md").write_text(text + table(header, rows))
    print(table(header, rows))


if __name__ == "__main__":
    main()
