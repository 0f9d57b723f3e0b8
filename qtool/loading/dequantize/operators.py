"""The float form of every quantization operator: ONNX's own, ONNX Runtime's, and QONNX's Quant.

Sources: the operator documents of ONNX (QuantizeLinear-21, QLinearConv-10, ...), of ONNX Runtime
(docs/ContribOperators.md) and of QONNX (arXiv:2206.07527, sec. V).
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, constant, rank
from qtool.loading.dequantize.affine import ONE, Held, Scale, Zero, monomial, numbers, same_zero
from qtool.loading.dequantize.float_graph import Floating
from qtool.loading.dequantize.packed_weights import dynamic_lstm, gather_block, matmul_nbits

Handler = Callable[[Floating, ir.Node], None]


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def needed(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator cannot do without."""
    value = operand(node, index)
    if value is None:
        raise AssertionError(f"{node.name} ({node.op_type}) lacks its input {index}")
    return value


def _kept(node: ir.Node, *names: str) -> dict[str, ir.Attr]:
    return {name: node.attributes[name] for name in names if name in node.attributes}


def _rounded(
    work: Floating, node: ir.Node, real: ir.Value, scale: ir.Value, zero: ir.Value | None
) -> None:
    """The node's output holds codes of a float value: note it, with the grid's saturation."""
    out = node.outputs[0]
    dtype = zero.dtype if zero is not None and zero.dtype is not None else _code_type(node)
    axis, block = attribute(node, "axis", 1), int(attribute(node, "block_size", 0))
    if "Quantize" not in node.op_type:
        axis, block = 1, 0  # another operator's axis is not the grid's
    step, offset = work.grid(real, scale, zero, int(axis), block)
    out.type = ir.TensorType(dtype)
    work.held[out] = Held(work.clipped(node, real, step, offset, dtype), step, offset, dtype)


def _code_type(node: ir.Node) -> ir.DataType:
    named = int(attribute(node, "output_dtype", 0))
    return ir.DataType(named) if named else node.outputs[0].dtype or ir.DataType.UINT8


def quantize(work: Floating, node: ir.Node) -> None:
    """QuantizeLinear: its input, saturated."""
    _rounded(work, node, needed(node, 0), needed(node, 1), operand(node, 2))


def dequantize(work: Floating, node: ir.Node) -> None:
    """DequantizeLinear: what its codes stand for."""
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    real = work.floats(node, needed(node, 0), needed(node, 1), operand(node, 2), axis, block)
    work.become(node.outputs[0], real)


def dynamic_quantize(work: Floating, node: ir.Node) -> None:
    """DynamicQuantizeLinear: codes on a grid made from the value itself."""
    codes, scale, zero = node.outputs
    codes.type = ir.TensorType(ir.DataType.UINT8)
    work.held[codes] = Held(needed(node, 0), monomial(scale), zero, ir.DataType.UINT8)


def qonnx_quant(work: Floating, node: ir.Node) -> None:
    """Quant of QONNX: quantized and dequantized in one node."""
    real = needed(node, 0)
    scale, zero, bits = (numbers(needed(node, k)) for k in (1, 2, 3))
    if scale is None or zero is None or bits is None:
        raise work.refuse(node, "its scale, zero point or bit width is computed at run time")
    signed, narrow = attribute(node, "signed", 1), attribute(node, "narrow", 0)
    lo = -(2.0 ** (bits - 1)) + narrow if signed else 0.0 * bits
    hi = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1 - narrow
    real = work.between(node, real, (lo - zero) * scale, (hi - zero) * scale, scale)
    work.become(node.outputs[0], real)


def conv(work: Floating, node: ir.Node) -> None:
    """QLinearConv; its bias has the scale of the product."""
    _no_channels_last(work, node)
    x, weight = needed(node, 0), needed(node, 3)
    floats = [
        work.floats(node, x, needed(node, 1), operand(node, 2)),
        work.floats(node, weight, needed(node, 4), operand(node, 5), axis=0),
    ]
    bias = operand(node, 8)
    if bias is not None:
        floats.append(_bias(work, node, bias, needed(node, 1), needed(node, 4)))
    kept = _kept(node, "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    real = work.add(node, "Conv", floats, kept, node.outputs[0])
    _rounded(work, node, real, needed(node, 6), operand(node, 7))


def _bias(
    work: Floating,
    node: ir.Node,
    bias: ir.Value,
    x_scale: ir.Value,
    w_scale: ir.Value,
    factor: float = 1.0,
) -> ir.Value:
    codes, scale = numbers(bias), (monomial(x_scale) * monomial(w_scale))
    if codes is None or scale.unknown:
        raise work.refuse(node, "its bias or the scale of its bias is computed at run time")
    name = str(bias.name).removesuffix("_quantized")
    return work.const(f"{name}_float", codes * scale.number * factor)


def matmul(work: Floating, node: ir.Node) -> None:
    """QLinearMatMul: scales per row of the left side, per column of the right one."""
    left = work.floats(node, needed(node, 0), needed(node, 1), operand(node, 2), axis=-2)
    right = work.floats(node, needed(node, 3), needed(node, 4), operand(node, 5), axis=-1)
    real = work.add(node, "MatMul", [left, right], like=node.outputs[0])
    _rounded(work, node, real, needed(node, 6), operand(node, 7))


def gemm(work: Floating, node: ir.Node) -> None:
    """QGemm: integers in, codes or floats out."""
    columns = 0 if attribute(node, "transB", 0) else 1
    alpha = float(attribute(node, "alpha", 1.0))
    floats = [
        work.floats(node, needed(node, 0), needed(node, 1), operand(node, 2)),
        work.floats(node, needed(node, 3), needed(node, 4), operand(node, 5), axis=columns),
    ]
    bias = operand(node, 6)
    if bias is not None:
        floats.append(_bias(work, node, bias, needed(node, 1), needed(node, 4), alpha))
    kept = _kept(node, "alpha", "transA", "transB")
    real = work.add(node, "Gemm", floats, kept, node.outputs[0])
    scale = operand(node, 7)
    if scale is None:
        work.become(node.outputs[0], real)
    else:
        _rounded(work, node, real, scale, operand(node, 8))


def _around(op: str, *names: str) -> Handler:
    """An operator of one quantized input: X, its grid, the grid of the output."""

    def handler(work: Floating, node: ir.Node) -> None:
        _no_channels_last(work, node)
        x = work.floats(node, needed(node, 0), needed(node, 1), operand(node, 2))
        real = work.add(node, op, [x], _kept(node, *names), node.outputs[0])
        _rounded(work, node, real, needed(node, 3), operand(node, 4))

    return handler


def _of_two(op: str) -> Handler:
    """An operator of two quantized inputs: A, its grid, B, its grid, the grid of the output."""

    def handler(work: Floating, node: ir.Node) -> None:
        a = work.floats(node, needed(node, 0), needed(node, 1), operand(node, 2))
        b = work.floats(node, needed(node, 3), needed(node, 4), operand(node, 5))
        real = work.add(node, op, [a, b], like=node.outputs[0])
        _rounded(work, node, real, needed(node, 6), operand(node, 7))

    return handler


def softmax(work: Floating, node: ir.Node) -> None:
    """QLinearSoftmax; before opset 13 its axis started a matrix, which is the same for the last."""
    x, axis = needed(node, 0), int(attribute(node, "axis", -1))
    if int(attribute(node, "opset", 13)) < 13 and axis not in (-1, (rank(x) or 0) - 1):
        raise work.refuse(node, f"its axis {axis} of an opset before 13 is not the last one")
    _around("Softmax", "axis")(work, node)


def reduce_mean(work: Floating, node: ir.Node) -> None:
    """QLinearReduceMean: the axes have become an input."""
    x = work.floats(node, needed(node, 0), needed(node, 1), operand(node, 2))
    axes = attribute(node, "axes")
    inputs = [x] if axes is None else [x, work.const("axes", axes, np.int64)]
    real = work.add(node, "ReduceMean", inputs, _kept(node, "keepdims"), node.outputs[0])
    _rounded(work, node, real, needed(node, 3), operand(node, 4))


def concat(work: Floating, node: ir.Node) -> None:
    """QLinearConcat: the grid of the output comes first."""
    inputs = [
        work.floats(node, needed(node, k), needed(node, k + 1), operand(node, k + 2))
        for k in range(2, len(node.inputs), 3)
    ]
    real = work.add(node, "Concat", inputs, _kept(node, "axis"), node.outputs[0])
    _rounded(work, node, real, needed(node, 0), operand(node, 1))


def where(work: Floating, node: ir.Node) -> None:
    """QLinearWhere."""
    a = work.floats(node, needed(node, 1), needed(node, 2), operand(node, 3))
    b = work.floats(node, needed(node, 4), needed(node, 5), operand(node, 6))
    real = work.add(node, "Where", [needed(node, 0), a, b], like=node.outputs[0])
    _rounded(work, node, real, needed(node, 7), operand(node, 8))


def _shifted(
    work: Floating, node: ir.Node, index: int, zero: ir.Value | None, axis: int
) -> tuple[ir.Value, Scale]:
    """An operand of an integer product without its zero point, and the scale it is on."""
    value = needed(node, index)
    array, known = numbers(value), np.zeros(()) if zero is None else numbers(zero)
    offset: Zero = known if known is not None else zero  # type: ignore[assignment]
    if array is not None and known is not None:
        if known.size > 1:
            known = known.reshape([-1 if k == axis % array.ndim else 1 for k in range(array.ndim)])
        name = str(value.name).removesuffix("_quantized")
        return work.const(f"{name}_float", array - known), ONE
    held = work.held.get(value)
    if held is None or not same_zero(held.zero, offset):
        raise work.refuse(node, f'its zero point is not the one "{value.name}" was quantized with')
    return held.real, held.scale


def integer_product(op: str) -> Handler:
    """MatMulInteger and ConvInteger: the float product, on the product of the scales."""

    def handler(work: Floating, node: ir.Node) -> None:
        out = node.outputs[0]
        axes = (-2, -1) if op == "MatMul" else (1, 0)
        a, left = _shifted(work, node, 0, operand(node, 2), axes[0])
        b, right = _shifted(work, node, 1, operand(node, 3), axes[1])
        kept = _kept(node, "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        real = work.add(node, op, [a, b], kept, out)
        out.type = ir.TensorType(ir.DataType.INT32)
        work.held[out] = Held(real, left * right, np.zeros(()), ir.DataType.INT32)

    return handler


def matmul_to_float(work: Floating, node: ir.Node) -> None:
    """MatMulIntegerToFloat: A and B with scales that may be computed, a float bias."""
    a, b = needed(node, 0), needed(node, 1)
    a_zero, b_zero = operand(node, 4), operand(node, 5)
    if work.held.get(a) is None and constant(a) is None:
        left, left_scale = work.floats(node, a, needed(node, 2), a_zero), monomial(needed(node, 2))
    else:
        left, left_scale = _shifted(work, node, 0, a_zero, -2)
    right = work.floats(node, b, needed(node, 3), b_zero, axis=-1)
    scale = left_scale / monomial(needed(node, 2))
    if scale.unknown:
        raise work.refuse(node, f'its scale is not the one "{a.name}" was quantized with')
    real = work.add(node, "MatMul", [left, right], like=node.outputs[0])
    bias = operand(node, 6)
    if not scale.is_one:
        real = work.add(node, "Mul", [real, work.const("scale", 1 / scale.number)], like=real)
    if bias is not None:
        real = work.add(node, "Add", [real, bias], like=real)
    work.become(node.outputs[0], real)


def dynamic_matmul(work: Floating, node: ir.Node) -> None:
    """DynamicQuantizeMatMul: a float A, a constant B on a grid, a float bias."""
    right = work.floats(node, needed(node, 1), needed(node, 2), operand(node, 3), axis=-1)
    real = work.add(node, "MatMul", [needed(node, 0), right], like=node.outputs[0])
    bias = operand(node, 4)
    if bias is not None:
        real = work.add(node, "Add", [real, bias], like=real)
    work.become(node.outputs[0], real)


def attention(work: Floating, node: ir.Node) -> None:
    """QAttention of ONNX Runtime: its Attention, with the same attributes."""
    x, weight = needed(node, 0), needed(node, 1)
    held = work.held.get(x)
    if held is not None and held.scale.unknown:
        real, scale = _shifted(work, node, 0, operand(node, 6), -1)
        if not scale.equals(monomial(needed(node, 3))):
            raise work.refuse(node, f'its scale is not the one "{x.name}" was quantized with')
    else:
        real = work.floats(node, x, needed(node, 3), operand(node, 6))
    weights = work.floats(node, weight, needed(node, 4), operand(node, 7), axis=-1)
    inputs = [real, weights, operand(node, 2), operand(node, 5), operand(node, 8)]
    while inputs[-1] is None:
        inputs.pop()
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise work.refuse(node, "it hands on its keys and values")
    names = [name for name in node.attributes if name != "input_quantize"]
    out = work.add(node, "Attention", inputs, _kept(node, *names), node.outputs[0], "com.microsoft")
    work.become(node.outputs[0], out)


def _no_channels_last(work: Floating, node: ir.Node) -> None:
    if attribute(node, "channels_last", 0):
        raise work.refuse(node, "its channels come last, expected [batch, channels, ...]")


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
    "QLinearAdd": _of_two("Add"),
    "QLinearMul": _of_two("Mul"),
    "QLinearSigmoid": _around("Sigmoid"),
    "QLinearLeakyRelu": _around("LeakyRelu", "alpha"),
    "QLinearAveragePool": _around("AveragePool", *_POOL),
    "QLinearGlobalAveragePool": _around("GlobalAveragePool"),
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


def handler_of(node: ir.Node) -> Handler | None:
    """What turns a node back to floats, or None where it is not a quantization operator."""
    if node.op_type == "Quant":  # QONNX has used several domains
        return qonnx_quant
    if node.domain in ("", "ai.onnx"):
        return ONNX.get(node.op_type)
    return MICROSOFT.get(node.op_type) if node.domain == "com.microsoft" else None
