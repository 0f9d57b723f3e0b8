"""Measure every layer on a few samples: its noise, the noise up to it, and the values it reads."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import nodes_by_name
from qtool.quant.plan import QuantPlan
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.verification.layers.measure import InputValues, LayerMeasure, channel_axis


def measure_layers(
    model: ir.Model, plan: QuantPlan, batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, LayerMeasure]:
    """Measure the quantization noise of each weighted site, alone and with all sites before it.

    Alone: the float input of the site is rounded to its grid, as are its weights and its output,
    and the result is compared with the site's float output. Cumulative: the output of the site in
    the quantized network is compared with the same.

        SQNR = 10 log10(sum(y^2) / sum((y - q(y))^2))

    Args:
        model: the rewritten float graph.
        plan: frozen.
        batches: input name -> array, one mapping a batch.

    Returns:
        Site name -> measurements over all batches.
    """
    simulation, executor = Simulation(model, plan), Executor(model)
    edges = {s.name: (s.inputs[0], s.output) for s in plan.sites.values() if s.weight is not None}
    nodes = nodes_by_name(model.graph)
    for dynamic in plan.dynamic.values():
        output = next(v.name for v in nodes[dynamic.name].outputs if v.name)
        edges[dynamic.name] = (dynamic.input, output or "")
    measures = {
        name: LayerMeasure(values=_input_values(plan, source, nodes[name].op_type))
        for name, (source, _) in edges.items()
    }
    names = {value for pair in edges.values() for value in pair}
    outputs = list({output: None for _, output in edges.values()})
    for batch in batches:
        floats, quantized = _float_values(executor, batch, names), simulation(batch, outputs)
        for name, (source, output) in edges.items():
            measure, expected = measures[name], floats[output]
            alone = simulation({**batch, source: floats[source]}, [output])[output]
            measure.alone.add(expected, alone)
            measure.cumulative.add(expected, quantized[output])
            if measure.values is not None:
                measure.values.add(floats[source].cpu().numpy())
    return measures


def _input_values(plan: QuantPlan, source: str, op: str) -> InputValues | None:
    """Return an empty collection of a layer's input values; None where the input has no grid."""
    params = plan.params(source)
    return None if params is None else InputValues(params, channel_axis(op))


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
