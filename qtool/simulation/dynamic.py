"""Products whose inputs get their grids while they run: DynamicQuantizeLinear, then integers.

A grid covers all numbers of the array at hand: a result depends on what else is in the batch. An
LSTM rounds its input once and its state before every step.

Source: ONNX operator DynamicQuantizeLinear; ONNX Runtime operator DynamicQuantizeLSTM.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


def fake(x: T) -> T:
    """The array rounded to 256 values between its own limits and zero."""
    codes, scale, zero = dynamic_quantize_linear(x)
    return (codes.float() - zero.float()) * scale


def _gemm(a: T, *others: T, **options: Any) -> T:
    return gemm(fake(a), *others, **options)


def _matmul(a: T, b: T) -> T:
    return matmul(fake(a), b)


def dynamic_lstm(x: Any, *others: Any, written: T | None = None, **options: Any) -> Any:
    """An LSTM that rounds its input and, before every step, its state.

    Args:
        x: float [steps, batch, inputs].
        others: W, R, B, sequence_lens, initial_h, initial_c, P as the operator has them.
        written: Y [steps, directions, batch, hidden] of another run; its states are used instead of
            the own ones, so that an error in one step is not counted in the next.
        options: attributes.
    """
    turned: dict[int, T] = {}

    def seen(layer: Layer, direction: int, step: int, state: T) -> T:
        if step and written is not None:
            if direction not in turned:
                turned[direction] = layer.in_order(written[:, direction], direction)
            state = turned[direction][step - 1]
        elif layer.lengths is not None:
            # A sequence that has ended leaves zeros behind, and these are what the grid covers.
            state = torch.where((step <= layer.lengths).unsqueeze(1), state, 0.0)
        return fake(state)

    w, r, *rest = others
    return lstm(fake(x), w, r, *rest, seen=seen, **options)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: on one sample at a time, threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


FUNCTIONS: Mapping[str, Op] = {"Gemm": _gemm, "MatMul": _matmul, "LSTM": dynamic_lstm}


def functions(plan: QuantPlan) -> dict[str, Callable[..., Any]]:
    """Node name -> what computes it, for the nodes whose inputs get grids while they run."""
    return {name: FUNCTIONS[site.op] for name, site in plan.dynamic.items()}


def exact_site(
    model: ir.Model,
    plan: QuantPlan,
    site: DynamicSite,
    value_of: Callable[[str], T],
    written: T,
) -> T:
    """The first output of a site as ONNX Runtime's kernel writes it.

    A product is exact to the last bit. An LSTM is exact but for its gates, whose Sigmoid and Tanh
    differ in the last bits of a float; every step starts from the state the file itself wrote.

    Args:
        model: the rewritten graph.
        plan: frozen.
        site: one of ``plan.dynamic``.
        value_of: gives a value or weight that the site reads, as floats or indices.
        written: what the file wrote for this output.
    """
    node = nodes_by_name(model.graph)[site.name]
    given = [None if v is None else value_of(v.name or "") for v in node.inputs]
    if site.op == "LSTM":
        return dynamic_lstm(*given, written=written, **options_of(node, lstm) or {})[0]
    grid, x = plan.params(site.weights[0]), given[0]
    if grid is None or x is None:
        raise AssertionError(f"{site.name} lost its input or the grid of its weights")
    codes = torch.from_numpy(plan.codes[site.weights[0]].astype(np.float64))
    return _product(node, x, codes, grid, given[2] if len(given) > 2 else None)


def _product(node: ir.Node, x: T, weight: T, grid: QuantParams, bias: T | None) -> T:
    """``float32(sum) * float32(s_x * s_w) + bias``, one rounding at each step."""
    codes, scale, zero = dynamic_quantize_linear(x)
    if attribute(node, "transB", 0):
        weight = weight.t()
    sums = torch.matmul(codes.double() - zero.double(), weight).to(torch.int32).to(torch.float32)
    y = sums * (scale * torch.from_numpy(grid.scale))
    return y if bias is None else y + bias
