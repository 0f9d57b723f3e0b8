"""The float forms of quantized convolutions, matrix products and attention.

Sources: the operator documents of ONNX (QLinearConv-10, MatMulInteger-10, ...) and of ONNX Runtime
(docs/ContribOperators.md).
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, constant
from qtool.loading.dequantize.affine import (
    ONE,
    QuantizedValue,
    Scale,
    ZeroPoint,
    constant_array,
    parse_scale,
    same_zero_point,
)
from qtool.loading.dequantize.float_graph import FloatGraphBuilder
from qtool.loading.dequantize.node_io import (
    check_channels_first,
    dequantize_input,
    optional_input,
    required_input,
    select_attributes,
    set_quantized_output,
)

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def conv(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QLinearConv(x, s_x, z_x, w, s_w, z_w, s_y, z_y, bias) by Conv."""
    check_channels_first(builder, node)
    inputs = [dequantize_input(builder, node, 0), dequantize_input(builder, node, 3, axis=0)]
    bias = optional_input(node, 8)
    if bias is not None:
        inputs.append(_dequantize_bias(builder, node, bias))
    real = builder.add(node, "Conv", inputs, select_attributes(node, *_CONV), node.outputs[0])
    set_quantized_output(builder, node, real, 6)


def matmul(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QLinearMatMul(a, s_a, z_a, b, s_b, z_b, s_y, z_y) by MatMul.

    Vectors of scales belong to the rows of ``a`` and to the columns of ``b``.
    """
    left = dequantize_input(builder, node, 0, axis=-2)
    right = dequantize_input(builder, node, 3, axis=-1)
    real = builder.add(node, "MatMul", [left, right], like=node.outputs[0])
    set_quantized_output(builder, node, real, 6)


def gemm(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QGemm(a, s_a, z_a, b, s_b, z_b, bias, s_y, z_y) by Gemm.

    Without an output scale the result is float.
    """
    columns = 0 if attribute(node, "transB", 0) else 1
    alpha = float(attribute(node, "alpha", 1.0))
    inputs = [dequantize_input(builder, node, 0), dequantize_input(builder, node, 3, axis=columns)]
    bias = optional_input(node, 6)
    if bias is not None:
        inputs.append(_dequantize_bias(builder, node, bias, alpha))
    attributes = select_attributes(node, "alpha", "transA", "transB")
    real = builder.add(node, "Gemm", inputs, attributes, node.outputs[0])
    if optional_input(node, 7) is None:
        builder.replace_value(node.outputs[0], real)
    else:
        set_quantized_output(builder, node, real, 7)


def _dequantize_bias(
    builder: FloatGraphBuilder, node: ir.Node, bias: ir.Value, alpha: float = 1.0
) -> ir.Value:
    """Return the float bias of a QLinearConv or QGemm: codes * s_x * s_w * alpha.

    Args:
        builder: of the float graph.
        node: has the scales of x and w as inputs 1 and 4.
        bias: int32 codes, which must be constant.
        alpha: the factor of the product, which the bias's scale includes.
    """
    codes = constant_array(bias)
    scale = parse_scale(required_input(node, 1)) * parse_scale(required_input(node, 4))
    if codes is None or scale.dynamic:
        raise builder.unsupported(node, "its bias or the scale of its bias is computed at run time")
    name = str(bias.name).removesuffix("_quantized")
    return builder.const(f"{name}_float", codes * scale.constant * alpha)


def _subtract_zero_point(
    builder: FloatGraphBuilder, node: ir.Node, index: int, zero: ir.Value | None, axis: int
) -> tuple[ir.Value, Scale]:
    """Return an operand of an integer product without its zero point, and its scale.

    Args:
        builder: of the float graph.
        node: the integer product.
        index: of the operand.
        zero: the operand's zero point, None for 0.
        axis: of the channels, where the zero point is a vector.

    Returns:
        (value, scale) with ``value / scale`` = codes - zero point: the float value and its scale,
        or for a constant the centred codes and scale 1, since the scale of a constant is in a Mul
        after the product.
    """
    value = required_input(node, index)
    array = constant_array(value)
    zero_array = np.zeros(()) if zero is None else constant_array(zero)
    offset: ZeroPoint = zero_array if zero_array is not None else zero  # type: ignore[assignment]
    if array is not None and zero_array is not None:
        if zero_array.size > 1:
            zero_array = zero_array.reshape(
                [-1 if k == axis % array.ndim else 1 for k in range(array.ndim)]
            )
        name = str(value.name).removesuffix("_quantized")
        return builder.const(f"{name}_float", array - zero_array), ONE
    quantized = builder.quantized_values.get(value)
    if quantized is None or not same_zero_point(quantized.zero_point, offset):
        raise builder.unsupported(
            node, f'its zero point is not the one "{value.name}" was quantized with'
        )
    return quantized.real, quantized.scale


def integer_product(op: str) -> Callable[[FloatGraphBuilder, ir.Node], None]:
    """Return a handler that replaces MatMulInteger or ConvInteger by a float product.

    The int32 output represents the float product with the scale s_a * s_b.

    Args:
        op: the float operator, "MatMul" or "Conv".
    """
    # Axes of vectors of zero points: rows of A, columns of B; channels of x, output channels of w.
    axes = (-2, -1) if op == "MatMul" else (1, 0)

    def handler(builder: FloatGraphBuilder, node: ir.Node) -> None:
        out = node.outputs[0]
        a, left = _subtract_zero_point(builder, node, 0, optional_input(node, 2), axes[0])
        b, right = _subtract_zero_point(builder, node, 1, optional_input(node, 3), axes[1])
        real = builder.add(node, op, [a, b], select_attributes(node, *_CONV), out)
        out.type = ir.TensorType(ir.DataType.INT32)
        builder.quantized_values[out] = QuantizedValue(
            real, left * right, np.zeros(()), ir.DataType.INT32
        )

    return handler


def matmul_to_float(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace MatMulIntegerToFloat(a, b, s_a, s_b, z_a, z_b, bias) by MatMul, Mul and Add.

    The scale of ``a`` may be computed at run time if it is the one that ``a`` was quantized with.
    """
    a, b = required_input(node, 0), required_input(node, 1)
    a_scale, b_scale = required_input(node, 2), required_input(node, 3)
    a_zero, b_zero = optional_input(node, 4), optional_input(node, 5)
    if builder.quantized_values.get(a) is None and constant(a) is None:
        left = builder.dequantize(node, a, a_scale, a_zero)
        left_scale = parse_scale(a_scale)
    else:
        left, left_scale = _subtract_zero_point(builder, node, 0, a_zero, -2)
    right = builder.dequantize(node, b, b_scale, b_zero, axis=-1)
    scale = left_scale / parse_scale(a_scale)
    if scale.dynamic:
        raise builder.unsupported(node, f'its scale is not the one "{a.name}" was quantized with')
    real = builder.add(node, "MatMul", [left, right], like=node.outputs[0])
    if not scale.is_one:
        factor = builder.const("scale", 1 / scale.constant)
        real = builder.add(node, "Mul", [real, factor], like=real)
    _replace_with_bias(builder, node, real, 6)


def dynamic_matmul(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace DynamicQuantizeMatMul(a, b, s_b, z_b, bias) with a float ``a`` by MatMul and Add."""
    right = dequantize_input(builder, node, 1, axis=-1)
    real = builder.add(node, "MatMul", [required_input(node, 0), right], like=node.outputs[0])
    _replace_with_bias(builder, node, real, 4)


def _replace_with_bias(
    builder: FloatGraphBuilder, node: ir.Node, real: ir.Value, index: int
) -> None:
    """Replace a node's output by a float product, plus its optional float bias."""
    bias = optional_input(node, index)
    if bias is not None:
        real = builder.add(node, "Add", [real, bias], like=real)
    builder.replace_value(node.outputs[0], real)


def attention(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace QAttention(x, w, bias, s_x, s_w, mask, z_x, z_w, past) by com.microsoft.Attention."""
    x, weight = required_input(node, 0), required_input(node, 1)
    x_scale, w_scale = required_input(node, 3), required_input(node, 4)
    quantized = builder.quantized_values.get(x)
    if quantized is not None and quantized.scale.dynamic:
        real, scale = _subtract_zero_point(builder, node, 0, optional_input(node, 6), -1)
        if not scale.equals(parse_scale(x_scale)):
            raise builder.unsupported(
                node, f'its scale is not the one "{x.name}" was quantized with'
            )
    else:
        real = builder.dequantize(node, x, x_scale, optional_input(node, 6))
    weights = builder.dequantize(node, weight, w_scale, optional_input(node, 7), axis=-1)
    inputs = [real, weights, *(optional_input(node, index) for index in (2, 5, 8))]
    while inputs[-1] is None:  # trailing inputs are omitted, others are empty
        inputs.pop()
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise builder.unsupported(node, "its second output (keys and values) is read")
    names = [name for name in node.attributes if name != "input_quantize"]
    attributes = select_attributes(node, *names)
    out = builder.add(node, "Attention", inputs, attributes, node.outputs[0], "com.microsoft")
    builder.replace_value(node.outputs[0], out)
