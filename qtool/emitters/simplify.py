"""Remove redundant parts of a QDQ file: zero points of 0, and scales of biases."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import constant

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
