"""Match nodes with a target's rules: the ops that can compute on codes, and why others cannot."""

import onnx_ir as ir

from qtool.graph.queries import attribute, clip_limits, constant, dims, is_constant, is_float, rank
from qtool.quant.bit_widths import Bits
from qtool.targets.target import OpRule, Target


def find_rule(node: ir.Node, target: Target, bits: Bits) -> tuple[OpRule | None, str]:
    """Return the rule by which a node computes on codes.

    Args:
        node: a node with float inputs or outputs.
        target: its ``ops`` are the rules.
        bits: the requested widths.

    Returns:
        The rule and "", or None and the reason why the node stays float, as the plan holds it.
    """
    weights, activations, _ = bits.of(node)
    if weights is None:
        return None, "the recipe asks for float"
    if activations is None:
        return None, "the recipe asks for float activations"
    rule = target.ops.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return None, f"{target.name} has no integer kernel for {node.op_type}"
    # Values that ONNX defines for absent attributes.
    defaults = {"transA": 0, "mode": {"Pad": "constant"}.get(node.op_type, "nearest")}
    for key, needed in rule.when.items():
        value = attribute(node, key, defaults.get(key))
        if value != needed:
            return None, f"{target.name} needs {key} = {needed}, found {value}"
    if rule.form == "weighted":
        reason = _why_not_weighted(node, rule)
        return (None, reason) if reason else (rule, "")
    if node.op_type == "Pad" and not _pads_zeros(node):
        return None, "only a constant Pad with zeros moves codes unchanged"
    if node.op_type == "AveragePool" and (reason := _why_not_average(node)):
        return None, f"{target.name}'s integer kernel {reason}"
    if any(v is not None and is_float(v) and v.dtype != ir.DataType.FLOAT for v in node.inputs):
        return None, "only float32 is quantized"
    if any(not is_code_output(v) and (v.uses() or v.is_graph_output()) for v in node.outputs):
        return None, "only its values can be codes, and its indices are read too"
    return rule, ""


def is_code_output(value: ir.Value) -> bool:
    """Return whether an output of an op that computes on codes is codes: not MaxPool's indices."""
    return is_float(value) or value.dtype is None


def is_absorbed(follower: ir.Node, rule: OpRule, bits: Bits) -> bool:
    """Return True when the clipping of an activation can be part of an op's output grid.

    Args:
        follower: the only reader of the op's output.
        rule: the rule of the op.
        bits: the requested widths.
    """
    if follower.op_type not in rule.absorbs or not bits.integer(follower):
        return False
    if follower.op_type != "Clip":
        return True
    lo, hi = clip_limits(follower)
    return lo is not None and hi is not None and lo <= 0 <= hi  # a grid always contains zero


def bias_of(node: ir.Node, rule: OpRule) -> ir.Value | None:
    """Return the bias of a weighted op, or None."""
    has_bias = rule.bias is not None and len(node.inputs) > rule.bias
    return node.inputs[rule.bias] if has_bias and rule.bias is not None else None


def _why_not_weighted(node: ir.Node, rule: OpRule) -> str:
    """Return why a Conv, ConvTranspose, Gemm or MatMul stays float; "" where it need not."""
    weight = node.inputs[rule.weight] if rule.weight is not None else None
    if not is_constant(weight) or weight is None:
        return "its weights are computed, not constant"
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weights are {weight.dtype}, not float32"
    if 0 in (dims(weight) or ()):
        return "its weights are empty"
    if is_constant(node.inputs[0]):
        return "its input is a constant"
    if node.op_type in ("Gemm", "MatMul") and rank(weight) != 2:
        return "its weight is not a matrix"
    bias = bias_of(node, rule)
    if bias is not None and (not is_constant(bias) or rank(bias) != 1):
        return "its bias is not a constant vector"
    if node.op_type == "Gemm":
        for key in ("alpha", "beta"):
            if attribute(node, key, 1.0) != 1.0:
                return f"{key} is not 1"
    return ""


def _why_not_average(node: ir.Node) -> str:
    """Return how QLinearAveragePool departs from ONNX on a node; "" where it does not."""
    if any(d != 1 for d in attribute(node, "dilations", ())):
        return "knows no dilations"
    if attribute(node, "ceil_mode", 0) and attribute(node, "count_include_pad", 0):
        return "divides windows that reach past the padding (ceil_mode) by the whole kernel"
    return ""


def _pads_zeros(node: ir.Node) -> bool:
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(fill)
    return is_constant(node.inputs[1]) and (fill is None or (array is not None and not array.any()))
