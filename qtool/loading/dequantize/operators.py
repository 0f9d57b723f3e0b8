"""The table of quantization operators and the functions that replace them by float operators.

Covered are ONNX's own operators, those of ONNX Runtime (com.microsoft) and QONNX's Quant.

Sources: the operator documents of ONNX (QuantizeLinear-21, QLinearConv-10, ...), of ONNX Runtime
(docs/ContribOperators.md) and of QONNX (arXiv:2206.07527, sec. V).
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, rank
from qtool.loading.dequantize.affine import QuantizedValue, constant_array, parse_scale
from qtool.loading.dequantize.float_graph import FloatGraphBuilder
from qtool.loading.dequantize.linear_operators import (
    attention,
    conv,
    dynamic_matmul,
    gemm,
    integer_product,
    matmul,
    matmul_to_float,
)
from qtool.loading.dequantize.node_io import (
    check_channels_first,
    dequantize_input,
    optional_input,
    required_input,
    select_attributes,
    set_quantized_output,
)
from qtool.loading.dequantize.packed_weights import dynamic_lstm, gather_block, matmul_nbits
from qtool.loading.dequantize.saturation import limit_range

Handler = Callable[[FloatGraphBuilder, ir.Node], None]


def quantize(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Record the output of QuantizeLinear(x, s, z) as x with the saturation of its type."""
    set_quantized_output(builder, node, required_input(node, 0), 1)


def dequantize(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace the output of DequantizeLinear(codes, s, z) by the float value of the codes."""
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    codes, scale, zero = required_input(node, 0), required_input(node, 1), optional_input(node, 2)
    real = builder.dequantize(node, codes, scale, zero, axis, block)
    builder.replace_value(node.outputs[0], real)


def dynamic_quantize(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Record the codes of DynamicQuantizeLinear, whose scale is computed from the value itself."""
    codes, scale, zero = node.outputs
    codes.type = ir.TensorType(ir.DataType.UINT8)
    builder.quantized_values[codes] = QuantizedValue(
        required_input(node, 0), parse_scale(scale), zero, ir.DataType.UINT8
    )


def qonnx_quant(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace Quant(x, s, z, bits) of QONNX, a fake quantization, by x limited to its range.

    With ``signed``: [-2^(bits - 1) + narrow, 2^(bits - 1) - 1], else [0, 2^bits - 1 - narrow].
    """
    real = required_input(node, 0)
    scale, zero, bits = (constant_array(required_input(node, k)) for k in (1, 2, 3))
    if scale is None or zero is None or bits is None:
        raise builder.unsupported(
            node, "its scale, zero point or bit width is computed at run time"
        )
    signed, narrow = attribute(node, "signed", 1), attribute(node, "narrow", 0)
    lo = -(2.0 ** (bits - 1)) + narrow if signed else 0.0 * bits
    hi = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1 - narrow
    real = limit_range(builder, node, real, (lo - zero) * scale, (hi - zero) * scale, scale)
    builder.replace_value(node.outputs[0], real)


def _unary(op: str, *names: str) -> Handler:
    """Return a handler for an operator with inputs (x, s_x, z_x, s_y, z_y).

    Args:
        op: the float operator.
        names: attributes that both operators have.
    """

    def handler(builder: FloatGraphBuilder, node: ir.Node) -> None:
        check_channels_first(builder, node)
        x = dequantize_input(builder, node, 0)
        real = builder.add(node, op, [x], select_attributes(node, *names), node.outputs[0])
        set_quantized_output(builder, node, real, 3)

    return handler


def _binary(op: str) -> Handler:
    """Return a handler for an operator with inputs (a, s_a, z_a, b, s_b, z_b, s_y, z_y).

    Args:
        op: the float operator.
    """

    def handler(builder: FloatGraphBuilder, node: ir.Node) -> None:
        inputs = [dequantize_input(builder, node, index) for index in (0, 3)]
        real = builder.add(node, op, inputs, like=node.outputs[0])
        set_quantized_output(builder, node, real, 6)

    return handler


def softmax(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QLinearSoftmax by Softmax.

    Before opset 13 Softmax normalized over ``axis`` and all axes after it. The two meanings agree
    for the last axis only.
    """
    x, axis = required_input(node, 0), int(attribute(node, "axis", -1))
    if int(attribute(node, "opset", 13)) < 13 and axis not in (-1, (rank(x) or 0) - 1):
        raise builder.unsupported(
            node, f"its axis {axis} of an opset before 13 is not the last one"
        )
    _unary("Softmax", "axis")(builder, node)


def reduce_mean(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QLinearReduceMean by ReduceMean, whose axes are an input."""
    x = dequantize_input(builder, node, 0)
    axes = attribute(node, "axes")
    inputs = [x] if axes is None else [x, builder.const("axes", axes, np.int64)]
    attributes = select_attributes(node, "keepdims")
    real = builder.add(node, "ReduceMean", inputs, attributes, node.outputs[0])
    set_quantized_output(builder, node, real, 3)


def concat(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QLinearConcat(s_y, z_y, x0, s_0, z_0, x1, ...) by Concat."""
    inputs = [dequantize_input(builder, node, k) for k in range(2, len(node.inputs), 3)]
    attributes = select_attributes(node, "axis")
    real = builder.add(node, "Concat", inputs, attributes, node.outputs[0])
    set_quantized_output(builder, node, real, 0)


def where(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QLinearWhere(condition, a, s_a, z_a, b, s_b, z_b, s_y, z_y) by Where."""
    values = [dequantize_input(builder, node, index) for index in (1, 4)]
    inputs = [required_input(node, 0), *values]
    real = builder.add(node, "Where", inputs, like=node.outputs[0])
    set_quantized_output(builder, node, real, 7)


_POOL = (
    "auto_pad",
    "ceil_mode",
    "count_include_pad",
    "dilations",
    "kernel_shape",
    "pads",
    "strides",
)
ONNX: dict[str, Handler] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "QLinearConv": conv,
    "QLinearMatMul": matmul,
    "MatMulInteger": integer_product("MatMul"),
    "ConvInteger": integer_product("Conv"),
}
MICROSOFT: dict[str, Handler] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "QLinearConv": conv,
    "QGemm": gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QLinearAveragePool": _unary("AveragePool", *_POOL),
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearSoftmax": softmax,
    "QLinearReduceMean": reduce_mean,
    "QLinearConcat": concat,
    "QLinearWhere": where,
    "MatMulIntegerToFloat": matmul_to_float,
    "DynamicQuantizeMatMul": dynamic_matmul,
    "QAttention": attention,
    "DynamicQuantizeLSTM": dynamic_lstm,
    "MatMulNBits": matmul_nbits,
    "GatherBlockQuantized": gather_block,
}


def find_handler(node: ir.Node) -> Handler | None:
    """Return the function that replaces a quantization operator, or None for other operators."""
    if node.op_type == "Quant":  # QONNX has used several domains
        return qonnx_quant
    if node.domain in ("", "ai.onnx"):
        return ONNX.get(node.op_type)
    return MICROSOFT.get(node.op_type) if node.domain == "com.microsoft" else None
