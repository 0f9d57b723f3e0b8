"""What a QDQ file need not say: zero points of 0, and scales of biases that are products."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import constant

# onnxruntime 1.31 finds no integer kernel for a Gemm or MatMul whose weights have no zero point.
WITHOUT_ZERO_POINT = {"Conv"}


def compact(graph: ir.Graph) -> None:
    """Make the file smaller, by 5 to 9 bytes for every output channel, in place.

    Zero points of weights are optional where they are 0. A bias has the scale s_x * s_w; where that
    product of float32 numbers is exact, the runtime computes it at load.
    """
    for node in list(graph):
        operands = [_dequantizer(v) for v in node.inputs]
        if len(operands) < 2 or operands[0] is None or operands[1] is None:
            continue
        if len(operands) == 3 and operands[2] is not None:
            _multiply(graph, operands[0], operands[1], operands[2])
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


def _multiply(graph: ir.Graph, x: ir.Node, w: ir.Node, bias: ir.Node) -> None:
    """Compute the scale of the bias where it is the product, and where the node is smaller."""
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
