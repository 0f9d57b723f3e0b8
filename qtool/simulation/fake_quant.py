"""Fake quantization on torch: the network with every value rounded to its grid, in floats."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.quant.chunked import pieces
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import dequantize, fake_quantize
from qtool.runtime.executor import Executor
from qtool.runtime.tensor_cache import TensorCache
from qtool.runtime.tensors import from_numpy
from qtool.simulation.dynamic import dynamic_functions
from qtool.simulation.one_scale import has_one_scale, rounded


class Simulation:
    """Fake-quantized network of a plan: every value with a grid is rounded to it, in floats.

    Dynamically quantized inputs are rounded inside the nodes that read them, on the grid of the
    batch. Weights and biases with codes are dequantized once, up to the limit of TensorCache.
    Runs in inference mode: outputs have no gradient.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: QuantPlan,
        device: str = "cpu",
        like: "Simulation | None" = None,
    ) -> None:
        """Prepare a plan.

        Args:
            model: the float graph.
            plan: every grid is calibrated.
            device: where floats are computed.
            like: of the same graph and a plan of the same structure; what depends on these alone
                is taken from there.
        """
        self.plan = plan
        index = None if like is None else like.executor.index
        self.executor: Executor = Executor(model, device, dynamic_functions(plan), index)
        edges = raw_edges(model, plan) if like is None else like.raw
        self.raw: frozenset[tuple[str, str]] = edges
        self._constants = TensorCache()

    def __call__(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Compute outputs of the quantized network for one batch.

        Args:
            feeds: tensors by value name.
            outputs: names of the values to return; the graph's outputs by default.
        """
        with torch.inference_mode():
            return self.executor(feeds, self.observe, outputs, self.raw)

    def computing(
        self, inputs: Iterable[str], outputs: Sequence[str]
    ) -> Callable[[Mapping[str, Any]], dict[str, np.ndarray]]:
        """Return a function that computes some outputs as arrays, from batches by input name."""

        def compute(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
            tensors = self({name: batch[name] for name in inputs}, outputs)
            return {name: np.asarray(tensor.cpu().numpy()) for name, tensor in tensors.items()}

        return compute

    def observe(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        """Return a value as the quantized network's readers see it.

        Args:
            value: of the graph; a weight with codes is dequantized, one that a step replaced is
                replaced, and what has a grid is rounded to it.
            tensor: its float value.
        """
        name = value.name or ""
        if name in self.plan.codes:
            return self._constants(name, lambda: constant_tensor(self.plan, name).to(tensor.device))
        if name in self.plan.weight_overrides:
            tensor = from_numpy(self.plan.weight_overrides[name]).to(tensor)
        params = self.plan.params(name)
        if params is None:
            return tensor
        return (rounded if has_one_scale(params, tensor) else fake_quantize)(tensor, params)


def constant_tensor(plan: QuantPlan, name: str) -> torch.Tensor:
    """Dequantize a weight, bias or constant operand as the emitted file does, to float32."""
    params = plan.params(name)
    if params is None:
        raise AssertionError(f"{name} has codes but no grid")
    codes = plan.codes[name]
    values = np.empty(codes.shape, np.float32)
    for part, grid in pieces(codes, params):
        # float32 holds codes of up to 16 bits, so their product with a scale rounds once. The int32
        # codes of a bias need float64 for that.
        wide = np.float64 if codes.itemsize > 2 else np.float32
        values[part] = dequantize(codes[part].astype(wide), grid)
    return torch.from_numpy(values)


def raw_edges(model: ir.Model, plan: QuantPlan) -> frozenset[tuple[str, str]]:
    """Return the (node, value) edges between float ops, on which values are read unrounded."""
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
