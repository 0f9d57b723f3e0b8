"""Annotate dynamic quantization: nodes whose kernels quantize their input at run time.

Such a node reads floats and writes floats: in the rest of the plan it is a float op with
weight-only quantization. Its kernel computes the grid of its input and multiplies codes by codes.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, dims, is_constant, name_of, rank
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import DynamicSite, QuantPlan
from qtool.quant.primitives import PerBlock, PerChannel
from qtool.targets.target import Target

# Input positions of the weights.
WEIGHTS = {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2)}


def add_dynamic(nodes: Iterable[ir.Node], target: Target, bits: Bits, plan: QuantPlan) -> QuantPlan:
    """Select the nodes that are quantized dynamically, and record the reasons of the others.

    Args:
        nodes: nodes of the main graph.
        target: its ``dynamic`` names the ops, and the number of weights from which it is faster.
        bits: the requested widths.
        plan: with ``weight_only`` and ``float_nodes``.

    Returns:
        The plan with ``dynamic``, whose nodes are removed from ``float_nodes``.
    """
    sites, reasons = {}, dict(plan.float_nodes)
    for node in nodes:
        name = name_of(node)
        if not bits.of(node).dynamic or name not in plan.float_nodes:
            continue
        if node.op_type not in target.dynamic:
            reasons[name] = (
                f"only {', '.join(target.dynamic)} find their input's grid while they run"
            )
            continue
        weights = tuple(
            name_of(value)
            for position in WEIGHTS[node.op_type]
            if (value := node.inputs[position]) is not None
        )
        if reason := _why_not(node, weights, target, plan):
            reasons[name] = reason
            continue
        outputs = [v.name for v in node.outputs if v.name]
        if node.op_type == "LSTM" and not node.outputs[0].name:
            outputs.insert(0, f"{name}_sequence")
        read = node.inputs[0].name if node.inputs[0] is not None else ""
        sites[name] = DynamicSite(name, node.op_type, read or "", tuple(outputs), weights)
        del reasons[name]
    return replace(plan, dynamic=sites, float_nodes=reasons)


def is_large(node: ir.Node, target: Target, bits: Bits) -> bool:
    """Return True when dynamic quantization is requested for a node and makes it faster."""
    least = target.dynamic.get(node.op_type)
    return bits.of(node).dynamic and least is not None and _size(node) >= least


def _size(node: ir.Node) -> int:
    """Count the weights of a MatMul, Gemm or LSTM."""
    shapes = [dims(node.inputs[position]) or () for position in WEIGHTS[node.op_type]]
    return sum(int(np.prod([d for d in shape if isinstance(d, int)])) for shape in shapes)


def _why_not(node: ir.Node, weights: tuple[str, ...], target: Target, plan: QuantPlan) -> str:
    """Return why a node is not quantized dynamically; "" where it is."""
    values = [node.inputs[position] for position in WEIGHTS[node.op_type]]
    if not all(is_constant(value) for value in values):
        return "its weights are computed, not constant"
    least = target.dynamic[node.op_type]
    if (size := _size(node)) < least:
        return f"with {size} weights, fewer than {least}, finding a grid costs more than it saves"
    if any(name not in plan.weight_only for name in weights):
        return "another reader of its weights, or the target, needs them as floats"
    specs = [spec for name in weights if (spec := plan.spec(name)) is not None]
    if any(isinstance(spec.granularity, PerBlock) for spec in specs):
        return "integer kernels have one scale for a channel, not for a block of weights"
    if any(spec.bits > 8 or not spec.symmetric for spec in specs):
        return "integer kernels read symmetric int8 weights"
    return _why_not_lstm(node) if node.op_type == "LSTM" else _why_not_product(node, plan)


def _why_not_product(node: ir.Node, plan: QuantPlan) -> str:
    """Return why MatMulInteger cannot compute a MatMul or Gemm; "" where it can."""
    x, weight = node.inputs[:2]
    if is_constant(x):
        return "its input is a constant"
    if rank(weight) != 2 or rank(x) in (0, 1):
        return "it is not a product of rows and a matrix"
    if attribute(node, "transA", 0):
        return "its input is transposed"
    if any(attribute(node, key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return "alpha or beta is not 1"
    spec = plan.spec(name_of(weight)) if weight is not None else None
    along = 0 if attribute(node, "transB", 0) else 1
    granularity = None if spec is None else spec.granularity
    if isinstance(granularity, PerChannel) and granularity.axis != along:
        return "the scales of its weights lie along the reduction"
    return ""


def _why_not_lstm(node: ir.Node) -> str:
    """Return why DynamicQuantizeLSTM cannot compute an LSTM; "" where it can."""
    names = attribute(node, "activations", ())
    if list(names) != ["Sigmoid", "Tanh", "Tanh"] * (len(names) // 3):
        return f"DynamicQuantizeLSTM was not measured with activations {', '.join(names)}"
    for key in ("activation_alpha", "activation_beta", "input_forget", "layout"):
        if attribute(node, key, 0):
            return f"DynamicQuantizeLSTM knows no {key}"
    return ""
