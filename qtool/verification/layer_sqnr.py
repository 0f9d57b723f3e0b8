"""Measure the signal-to-quantization-noise ratio of every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import nodes_by_name
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
        """Signal to noise in dB; None where nothing is lost or there is no signal."""
        if self.noise <= 0 or self.signal <= 0:
            return None
        return float(10 * np.log10(self.signal / self.noise))


def layer_noise(
    model: ir.Model, plan: QuantPlan, batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Noise]:
    """How much each weighted site loses by itself.

    Its float input is rounded to the grid, its weights and its output too, and the result compared
    with its float output. Errors of earlier layers are not in it.

    Returns:
        Site name -> power of signal and noise over all batches.
    """
    simulation, floats = Simulation(model, plan), Executor(model)
    ends = {s.name: (s.inputs[0], s.output) for s in plan.sites.values() if s.weight is not None}
    nodes = nodes_by_name(model.graph)
    for dynamic in plan.dynamic.values():
        named = next(v.name for v in nodes[dynamic.name].outputs if v.name)
        ends[dynamic.name] = (dynamic.input, named or "")
    found = {name: Noise() for name in ends}
    wanted = {value for pair in ends.values() for value in pair}
    for batch in batches:
        kept: dict[str, torch.Tensor] = {}

        def keep(value: ir.Value, tensor: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            if value.name in wanted:
                kept[value.name] = tensor
            return tensor

        with torch.inference_mode():
            floats(batch, keep)
        for name, (read, written) in ends.items():
            float_out = kept[written]
            out = simulation({**batch, read: kept[read]}, [written])[written]
            part = found[name]
            part.signal += float(float_out.double().square().sum())
            part.noise += float((float_out - out).double().square().sum())
    return found
