"""Sites that the emitted file computes in floats between Q and DQ, one at a time, on torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import constant, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import QuantParams, align, quantize
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import constant_tensor


class FloatSites:
    """Float computation of single sites with the weights and biases of the emitted file."""

    def __init__(
        self, model: ir.Model, plan: QuantPlan, executor: Executor, qonnx: bool = False
    ) -> None:
        """Prepare a plan.

        Args:
            model: the rewritten graph.
            plan: frozen.
            executor: of ``model``.
            qonnx: the file is a QONNX file, whose Quant operator rounds in another order.
        """
        self.plan, self.executor, self.qonnx = plan, executor, qonnx
        self.nodes = nodes_by_name(model.graph)

    def site(self, site: Site, feeds: Mapping[str, Any]) -> torch.Tensor:
        """Compute the output of a site: codes where it has a grid, else float32 values.

        Args:
            site: one of the plan's.
            feeds: values of its inputs that are not constants, by name.
        """
        bias = self._rounded_bias(site)

        def emitted(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
            return bias.get(value.name or "", self.emitted(value, tensor))

        with torch.inference_mode():
            output = self.executor(feeds, emitted, [site.output])[site.output]
        params = self.plan.params(site.output)
        return output if params is None else self.codes(output, params)

    def codes(self, values: torch.Tensor, params: QuantParams) -> torch.Tensor:
        """Quantize values as the file's QuantizeLinear or Quant operator does."""
        if not self.qonnx:
            return quantize(values, params)
        # QONNX's Quant adds the zero point before it rounds and clamps; ONNX adds it after.
        scale, zero = align(params, values)
        return (values / scale + zero).clamp(params.spec.qmin, params.spec.qmax).round()

    def emitted(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a constant that the file holds as codes by its dequantized codes."""
        name = value.name or ""
        return constant_tensor(self.plan, name) if name in self.plan.codes else tensor

    def emitted_weight_only(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        """Replace only those constants that float operators read as codes (``weight_only``)."""
        name = value.name or ""
        return constant_tensor(self.plan, name) if name in self.plan.weight_only else tensor

    def _rounded_bias(self, site: Site) -> dict[str, torch.Tensor]:
        """Round a float bias to int32 on the grid s_x * s_w, as ONNX Runtime does.

        Its fusion into QLinearConv and QGemm quantizes the bias so. It fuses where the layer writes
        codes; where the layer writes floats, the bias stays as it is and the result is empty.
        """
        x, w = self.plan.params(site.inputs[0]), self.plan.params(site.weight or "")
        inputs = self.nodes[site.name].inputs
        value = inputs[2] if site.op in ("Conv", "Gemm") and len(inputs) > 2 else None
        array = constant(value)
        if value is None or array is None or x is None or w is None or site.bias is not None:
            return {}
        if site.output not in self.plan.grid_of:
            return {}
        scale = x.scale * w.scale
        return {value.name or "": torch.from_numpy(np.rint(array / scale) * scale)}
