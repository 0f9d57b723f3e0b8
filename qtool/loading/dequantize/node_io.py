"""Access to the inputs, attributes and outputs of quantization operators."""

import onnx_ir as ir

from qtool.graph.queries import attribute
from qtool.loading.dequantize.affine import QuantizedValue
from qtool.loading.dequantize.float_graph import FloatGraphBuilder
from qtool.loading.dequantize.saturation import saturate


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input of a node, or None where it is omitted."""
    return node.inputs[index] if index < len(node.inputs) else None


def required_input(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the operator's definition requires."""
    value = optional_input(node, index)
    if value is None:
        raise AssertionError(f"{node.name} ({node.op_type}) lacks its input {index}")
    return value


def select_attributes(node: ir.Node, *names: str) -> dict[str, ir.Attr]:
    """Return those of the named attributes that a node has."""
    return {name: node.attributes[name] for name in names if name in node.attributes}


def check_channels_first(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Check that an operator of ONNX Runtime does not use the channels-last layout.

    Raises:
        UnsupportedError: it does; the standard operators have no such layout.
    """
    if attribute(node, "channels_last", 0):
        raise builder.unsupported(node, "its channels come last, expected [batch, channels, ...]")


def dequantize_input(
    builder: FloatGraphBuilder, node: ir.Node, index: int, axis: int = 1
) -> ir.Value:
    """Return the float value of a quantized input.

    Args:
        builder: of the float graph.
        node: an operator whose inputs ``index``, ``index + 1`` and ``index + 2`` are codes, scale
            and zero point.
        index: of the codes.
        axis: of the channels, where the scale is a vector.
    """
    codes, scale = required_input(node, index), required_input(node, index + 1)
    return builder.dequantize(node, codes, scale, optional_input(node, index + 2), axis)


def set_quantized_output(
    builder: FloatGraphBuilder, node: ir.Node, real: ir.Value, index: int
) -> None:
    """Record the float value, scale and zero point of a node's first output.

    Args:
        builder: of the float graph.
        node: an operator whose inputs ``index`` and ``index + 1`` are the scale and zero point of
            its output.
        real: the float value before quantization; it gets the saturation of the output's type.
        index: of the scale.
    """
    out = node.outputs[0]
    scale, zero = required_input(node, index), optional_input(node, index + 1)
    dtype = zero.dtype if zero is not None and zero.dtype is not None else _output_dtype(node)
    axis, block = 1, 0
    if "Quantize" in node.op_type:  # the axis of other operators is not that of the scale
        axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    step, offset = builder.grid(real, scale, zero, axis, block)
    out.type = ir.TensorType(dtype)
    saturated = saturate(builder, node, real, step, offset, dtype)
    builder.quantized_values[out] = QuantizedValue(saturated, step, offset, dtype)


def _output_dtype(node: ir.Node) -> ir.DataType:
    """Return the type of the codes of a node without a zero point; ONNX's default is uint8."""
    dtype = int(attribute(node, "output_dtype", 0))
    return ir.DataType(dtype) if dtype else node.outputs[0].dtype or ir.DataType.UINT8
