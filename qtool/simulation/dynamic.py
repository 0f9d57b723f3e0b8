"""Dynamic quantization: products whose inputs are quantized at run time, on the range of the data.

A grid covers the whole array, so a sample's result depends on the other samples of its batch. An
LSTM quantizes its input once and its state before every step.

Source: ONNX operator DynamicQuantizeLinear; ONNX Runtime operator DynamicQuantizeLSTM.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import attribute, nodes_by_name
from qtool.quant.plan import DynamicSite, QuantPlan
from qtool.quant.primitives import QuantParams
from qtool.runtime.ops.linalg import gemm, matmul
from qtool.runtime.ops.quantized import dynamic_quantize_linear
from qtool.runtime.ops.recurrent import Layer, lstm
from qtool.runtime.ops.table import options_of
from qtool.runtime.tensors import Op, T


def dynamic_fake_quantize(x: T) -> T:
    """Round an array to 256 values between its limits, zero included; see DynamicQuantizeLinear."""
    codes, scale, zero = dynamic_quantize_linear(x)
    return (codes.float() - zero.float()) * scale


def _gemm(a: T, *others: T, **options: Any) -> T:
    return gemm(dynamic_fake_quantize(a), *others, **options)


def _matmul(a: T, b: T) -> T:
    return matmul(dynamic_fake_quantize(a), b)


def dynamic_lstm(x: Any, *others: Any, written: T | None = None, **options: Any) -> Any:
    """Run an LSTM that quantizes its input and, before every step, its state.

    Args:
        x: float [steps, batch, inputs].
        others: W, R, B, sequence_lens, initial_h, initial_c, P as the operator has them.
        written: Y [steps, directions, batch, hidden] of another run; each step starts from its
            states, so that an error in one step is not counted in the next.
        options: attributes of the operator.

    Returns:
        Y, Y_h and Y_c.

    Source: ONNX Runtime operator DynamicQuantizeLSTM.
    """
    ordered: dict[int, T] = {}

    def quantized_state(layer: Layer, direction: int, step: int, state: T) -> T:
        if step and written is not None:
            if direction not in ordered:
                ordered[direction] = layer.in_order(written[:, direction], direction)
            state = ordered[direction][step - 1]
        elif layer.lengths is not None:
            # DynamicQuantizeLSTM leaves zeros in the state buffer of a sequence that has ended, and
            # its grid covers that buffer.
            state = torch.where((step <= layer.lengths).unsqueeze(1), state, 0.0)
        return dynamic_fake_quantize(state)

    w, r, *rest = others
    return lstm(dynamic_fake_quantize(x), w, r, *rest, state_hook=quantized_state, **options)


FUNCTIONS: Mapping[str, Op] = {"Gemm": _gemm, "MatMul": _matmul, "LSTM": dynamic_lstm}


def dynamic_functions(plan: QuantPlan) -> dict[str, Callable[..., Any]]:
    """Return node name -> function for the nodes whose inputs are quantized dynamically."""
    return {name: FUNCTIONS[site.op] for name, site in plan.dynamic.items()}


def dynamic_site_output(
    model: ir.Model,
    plan: QuantPlan,
    site: DynamicSite,
    value_of: Callable[[str], T],
    written: T,
) -> T:
    """Compute the first output of a site as ONNX Runtime's kernel writes it.

    A product is equal to the last bit. So is an LSTM but for its gates, whose Sigmoid and Tanh
    differ in the last bits of a float; every step starts from the state that the file wrote.

    Args:
        model: the rewritten graph.
        plan: frozen.
        site: one of ``plan.dynamic``.
        value_of: returns an input or weight of the site by name, as floats or indices.
        written: the file's array of this output.
    """
    node = nodes_by_name(model.graph)[site.name]
    inputs = [None if v is None else value_of(v.name or "") for v in node.inputs]
    if site.op == "LSTM":
        return dynamic_lstm(*inputs, written=written, **options_of(node, lstm) or {})[0]
    grid, x = plan.params(site.weights[0]), inputs[0]
    if grid is None or x is None:
        raise AssertionError(f"{site.name} has no input or no grid of its weights")
    codes = torch.from_numpy(plan.codes[site.weights[0]].astype(np.float64))
    return _product(node, x, codes, grid, inputs[2] if len(inputs) > 2 else None)


def _product(node: ir.Node, x: T, weight: T, grid: QuantParams, bias: T | None) -> T:
    """Compute ``float32(sum) * float32(s_x * s_w) + bias``, one rounding at each step.

    Source: ONNX Runtime kernels DynamicQuantizeMatMul and MatMulIntegerToFloat (class
    MLAS_QGEMM_SCALE_BIAS_OUTPUT_PROCESSOR): multiply, then add, without a fused multiply-add.
    """
    codes, scale, zero = dynamic_quantize_linear(x)
    if attribute(node, "transB", 0):
        weight = weight.t()
    # float64 holds sums of products of 8-bit codes exactly, as the kernel's int32 does.
    sums = torch.matmul(codes.double() - zero.double(), weight).to(torch.int32).to(torch.float32)
    y = sums * (scale * torch.from_numpy(grid.scale))
    return y if bias is None else y + bias
