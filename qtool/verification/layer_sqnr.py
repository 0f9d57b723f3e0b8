"""Measure the signal-to-quantization-noise ratio of every layer."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import nodes_by_name
from qtool.metrics.fidelity import power_db
from qtool.quant.plan import QuantPlan
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation


@dataclass
class Noise:
    """Power of a layer's float output, and of its difference to the quantized layer."""

    signal: float = 0.0
    noise: float = 0.0

    @property
    def db(self) -> float | None:
        """Signal to noise in dB; None where there is no noise or no signal."""
        return power_db(self.signal, self.noise)


def layer_noise(
    model: ir.Model, plan: QuantPlan, batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Noise]:
    """Measure the quantization noise of each weighted site alone.

    The float input of the site is rounded to its grid, as are its weights and its output, and the
    result is compared with the site's float output. Errors of earlier layers are not included.

        SQNR = 10 log10(sum(y^2) / sum((y - q(y))^2))

    Args:
        model: the rewritten float graph.
        plan: frozen.
        batches: input name -> array, one mapping a batch.

    Returns:
        Site name -> power of signal and noise over all batches.
    """
    simulation, executor = Simulation(model, plan), Executor(model)
    edges = {s.name: (s.inputs[0], s.output) for s in plan.sites.values() if s.weight is not None}
    nodes = nodes_by_name(model.graph)
    for dynamic in plan.dynamic.values():
        output = next(v.name for v in nodes[dynamic.name].outputs if v.name)
        edges[dynamic.name] = (dynamic.input, output or "")
    powers = {name: Noise() for name in edges}
    names = {value for pair in edges.values() for value in pair}
    for batch in batches:
        floats = _float_values(executor, batch, names)
        for name, (source, output) in edges.items():
            expected = floats[output]
            out = simulation({**batch, source: floats[source]}, [output])[output]
            power = powers[name]
            power.signal += float(expected.double().square().sum())
            power.noise += float((expected - out).double().square().sum())
    return powers


def _float_values(
    executor: Executor, batch: Mapping[str, np.ndarray], names: Collection[str]
) -> dict[str, torch.Tensor]:
    """Run the float model on a batch and return the named values."""
    tensors: dict[str, torch.Tensor] = {}

    def record(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        if value.name is not None and value.name in names:
            tensors[value.name] = tensor
        return tensor

    with torch.inference_mode():
        executor(batch, record)
    return tensors
