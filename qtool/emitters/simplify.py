"""Remove redundant parts of a QDQ file, and prevent fusions into float kernels."""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant, add_node, drop, replace_value
from qtool.graph.queries import constant, nodes_by_name, sole_reader
from qtool.quant.plan import QuantPlan
from qtool.targets.target import Target

# Ops whose weights need no zero point: onnxruntime 1.31 does not fuse a Gemm or MatMul without one.
WITHOUT_ZERO_POINT = {"Conv"}


def compact(graph: ir.Graph) -> None:
    """Make the file smaller, by 5 to 9 bytes for every output channel, in place.

    Zero points of weights are left out where they are 0. The scale of a bias is s_x * s_w: where
    that product of float32 numbers is exact, a Mul computes it, which the runtime folds at load.
    """
    for node in list(graph):
        operands = [_dequantizer(v) for v in node.inputs]
        if len(operands) < 2 or operands[0] is None or operands[1] is None:
            continue
        if len(operands) == 3 and operands[2] is not None:
            _replace_bias_scale(graph, operands[0], operands[1], operands[2])
        _leave_out_zeros(operands[1])


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _leave_out_zeros(weights: ir.Node) -> None:
    if len(weights.inputs) < 3:
        return
    zero, readers = constant(weights.inputs[2]), weights.outputs[0].uses()
    if zero is None or zero.any() or {n.op_type for n, _ in readers} - WITHOUT_ZERO_POINT:
        return
    weights.resize_inputs(2)


def _replace_bias_scale(graph: ir.Graph, x: ir.Node, w: ir.Node, bias: ir.Node) -> None:
    """Replace the scale of a bias by a Mul of the other two, where that makes the file smaller."""
    scales = [node.inputs[1] for node in (x, w, bias)]
    left, right, whole = (constant(v) for v in scales)
    if left is None or right is None or whole is None or not np.array_equal(left * right, whole):
        return
    out = scales[2]
    if out is None or len(out.uses()) > 1:
        return
    if whole.nbytes <= sum(len(v.name or "") for v in scales if v is not None):
        return
    product = ir.Node("", "Mul", scales[:2], name=out.name)
    graph.insert_before(bias, product)
    product.outputs[0].name, product.outputs[0].type = out.name, out.type
    bias.replace_input_with(1, product.outputs[0])


def separate_activations(graph: ir.Graph, plan: QuantPlan, target: Target) -> None:
    """Write a Relu or Clip behind a layer's float output as Max and Min, where the target says so.

    Args:
        graph: with Q and DQ, changed in place.
        plan: of the graph.
        target: its rules name what the runtime would fuse into a float kernel.
    """
    nodes = nodes_by_name(graph)
    for site in plan.sites.values():
        rule = target.ops.get(site.op)
        if rule is None or site.output in plan.grid_of or site.name not in nodes:
            continue
        activation = sole_reader(nodes[site.name].outputs[0])
        if activation is not None and activation.op_type in rule.unfused:
            _write_as_max_and_min(graph, activation)


def _write_as_max_and_min(graph: ir.Graph, activation: ir.Node) -> None:
    """Replace Relu by Max(x, 0), Clip by Min(Max(x, low), high)."""
    y, *limits = activation.inputs
    if activation.op_type == "Relu":
        limits = [add_constant(graph, f"{activation.name}.zero", np.array(0, np.float32))]
    assert y is not None
    shape = None if y.shape is None else [d if isinstance(d, int) else d.value for d in y.shape]
    for op, limit in zip(("Max", "Min"), limits, strict=False):
        if limit is not None:
            y = add_node(activation, op, [y, limit], name=f"{activation.name}/{op}", shape=shape)
    replace_value(activation.outputs[0], y)
    drop(activation)
