"""Which nodes multiply codes although no calibration found their inputs' grids.

Such a node reads floats and writes floats: to the rest of the plan it is a float op with stored
weights. Its kernel finds the grid of its input while it runs and multiplies codes by codes.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, dims, is_constant, rank
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import DynamicSite, QuantPlan
from qtool.quant.primitives import PerBlock, PerChannel
from qtool.targets.target import Target

# Input positions of the weights.
WEIGHTS = {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2)}


def add_dynamic(nodes: Iterable[ir.Node], target: Target, bits: Bits, plan: QuantPlan) -> QuantPlan:
    """Name the nodes whose inputs get grids while they run, and why others do not.

    Args:
        nodes: of the main graph.
        target: says for which ops it pays, and from how many weights on.
        bits: what the recipe asks for.
        plan: with its stored weights.
    """
    found, floats = {}, dict(plan.float_nodes)
    for node in nodes:
        name = node.name or ""
        if not bits.of(node).dynamic or name not in plan.float_nodes:
            continue
        if node.op_type not in target.dynamic:
            floats[name] = (
                f"only {', '.join(target.dynamic)} find their input's grid while they run"
            )
            continue
        weights = tuple(
            value.name or ""
            for position in WEIGHTS[node.op_type]
            if (value := node.inputs[position]) is not None
        )
        if why := _why_not(node, weights, target, plan):
            floats[name] = why
            continue
        outputs = [v.name for v in node.outputs if v.name]
        if node.op_type == "LSTM" and not node.outputs[0].name:
            outputs.insert(0, f"{name}_sequence")
        read = node.inputs[0].name if node.inputs[0] is not None else ""
        found[name] = DynamicSite(name, node.op_type, read or "", tuple(outputs), weights)
        del floats[name]
    return replace(plan, dynamic=found, float_nodes=floats)


def is_large(node: ir.Node, target: Target, bits: Bits) -> bool:
    """True when the node may find grids while it runs, and has weights enough for that to pay."""
    least = target.dynamic.get(node.op_type)
    return bits.of(node).dynamic and least is not None and _size(node) >= least


def _size(node: ir.Node) -> int:
    shapes = [dims(node.inputs[position]) or () for position in WEIGHTS[node.op_type]]
    return sum(int(np.prod([d for d in shape if isinstance(d, int)])) for shape in shapes)


def _why_not(node: ir.Node, weights: tuple[str, ...], target: Target, plan: QuantPlan) -> str:
    held = [node.inputs[position] for position in WEIGHTS[node.op_type]]
    if not all(is_constant(value) for value in held):
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
    return _lstm(node) if node.op_type == "LSTM" else _product(node, plan)


def _product(node: ir.Node, plan: QuantPlan) -> str:
    x, weight = node.inputs[:2]
    if is_constant(x):
        return "its input is a constant"
    if rank(weight) != 2 or rank(x) in (0, 1):
        return "it is not a product of rows and a matrix"
    if attribute(node, "transA", 0):
        return "its input is transposed"
    if any(attribute(node, key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return "alpha or beta is not 1"
    spec = plan.spec(weight.name or "") if weight is not None else None
    along = 0 if attribute(node, "transB", 0) else 1
    granularity = None if spec is None else spec.granularity
    if isinstance(granularity, PerChannel) and granularity.axis != along:
        return "the scales of its weights lie along the reduction"
    return ""


def _lstm(node: ir.Node) -> str:
    names = attribute(node, "activations", ())
    if list(names) != ["Sigmoid", "Tanh", "Tanh"] * (len(names) // 3):
        return f"DynamicQuantizeLSTM was not measured with activations {', '.join(names)}"
    for key in ("activation_alpha", "activation_beta", "input_forget", "layout"):
        if attribute(node, key, 0):
            return f"DynamicQuantizeLSTM knows no {key}"
    return ""
