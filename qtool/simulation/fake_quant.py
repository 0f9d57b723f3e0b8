"""A plan on torch: the fake-quantized network, and the codes of single sites to the last bit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.quant.chunked import pieces
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import dequantize, fake_quantize
from qtool.runtime.executor import Executor
from qtool.runtime.tensor_cache import Kept
from qtool.runtime.tensors import from_numpy
from qtool.simulation.dynamic import functions


class Simulation:
    """The network as the plan changes it: every value on a grid is rounded to it, in floats.

    Inputs that get their grids while the network runs are rounded inside the nodes that read them,
    on the grid of the batch at hand. Weights and biases with codes are dequantized once, as far as
    they fit (``kept``).
    Differentiable nowhere: rounding has no gradient of its own.
    """

    def __init__(self, model: ir.Model, plan: QuantPlan, device: str = "cpu") -> None:
        self.plan = plan
        self.executor = Executor(model, device, functions(plan))
        self.raw = raw_edges(model, plan)
        self._constants = Kept()

    def __call__(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Outputs of the quantized network for one batch."""
        with torch.inference_mode():
            return self.executor(feeds, self._observe, outputs, self.raw)

    def _observe(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        name = value.name or ""
        if name in self.plan.codes:
            return self._constants(name, lambda: constant_tensor(self.plan, name).to(tensor.device))
        if name in self.plan.weight_overrides:
            tensor = from_numpy(self.plan.weight_overrides[name]).to(tensor)
        params = self.plan.params(name)
        return tensor if params is None else fake_quantize(tensor, params)


def constant_tensor(plan: QuantPlan, name: str) -> torch.Tensor:
    """A weight, bias or constant operand as the emitted file holds it, float32."""
    params = plan.params(name)
    if params is None:
        raise AssertionError(f"{name} has codes but no grid")
    codes = plan.codes[name]
    values = np.empty(codes.shape, np.float32)
    for part, grid in pieces(codes, params):
        # Codes of 16 bits times a scale round once in either; biases need the wider one.
        wide = np.float64 if codes.itemsize > 2 else np.float32
        values[part] = dequantize(codes[part].astype(wide), grid)
    return torch.from_numpy(values)


def raw_edges(model: ir.Model, plan: QuantPlan) -> frozenset[tuple[str, str]]:
    """(node, value) edges on which a float op reads what another float op wrote, unrounded."""
    integer = plan.integer_nodes
    edges = set()
    for node in model.graph:
        if node.name in integer:
            continue
        for value in node.inputs:
            if value is None or value.name not in plan.grid_of or value.name in plan.weight_only:
                continue
            producer = value.producer()
            if producer is None or producer.name not in integer:
                edges.add((node.name or "", value.name or ""))
    return frozenset(edges)
