"""The float forms of ONNX Runtime's operators with packed or transposed weights.

Source: ONNX Runtime's docs/ContribOperators.md (MatMulNBits, GatherBlockQuantized,
DynamicQuantizeLSTM).
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute
from qtool.loading.dequantize.affine import broadcast_scale, constant_array
from qtool.loading.dequantize.float_graph import FloatGraphBuilder
from qtool.loading.dequantize.node_io import optional_input


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Unpack codes from bytes along the last axis, the first code in the lowest bits.

    Args:
        packed: [..., bytes], 0..255.
        bits: of a code: 1, 2, 4 or 8.

    Returns:
        float64 [..., bytes * 8 / bits].
    """
    each = packed.astype(np.uint8)[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
    codes = each & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1).astype(np.float64)


def matmul_nbits(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace MatMulNBits(a, packed, scales, zeros, groups, bias) by MatMul and Add.

    The weight is [N, K], packed and quantized in blocks along K; ``a`` is [..., K].
    """
    k, n = int(attribute(node, "K")), int(attribute(node, "N"))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size"))
    packed, scales, zeros = (constant_array(optional_input(node, index)) for index in (1, 2, 3))
    if packed is None or scales is None or (zeros is None) != (optional_input(node, 3) is None):
        raise builder.unsupported(node, "its weights are computed at run time")
    if optional_input(node, 4) is not None or 8 % bits:
        raise builder.unsupported(
            node, f"found group indices or {bits} bits, expected none and 1, 2, 4 or 8"
        )
    blocks = -(-k // block)  # the last block of a row may be padded
    codes = unpacked(packed.reshape(n, blocks, -1), bits)[..., :block]
    if zeros is None:
        zeros = np.full((n, blocks), 2.0 ** (bits - 1))
    # Zero points are packed like the weights, or have the type of the scales.
    elif optional_input(node, 3).dtype == ir.DataType.UINT8:  # type: ignore[union-attr]
        zeros = unpacked(zeros.reshape(n, -1), bits)[:, :blocks]
    values = (codes - zeros.reshape(n, blocks, 1)) * scales.reshape(n, blocks, 1)
    weight = builder.const(f"{_input_name(node, 1)}_float", values.reshape(n, -1)[:, :k].T)
    real = builder.add(node, "MatMul", [node.inputs[0], weight], like=node.outputs[0])
    bias = optional_input(node, 5)
    if bias is not None:
        real = builder.add(node, "Add", [real, bias], like=real)
    builder.replace_value(node.outputs[0], real)


def gather_block(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace GatherBlockQuantized(table, indices, scales, zeros) by Gather.

    The table is quantized in blocks along one axis; uint8 tables are packed along their last axis.
    """
    table, scales, zeros = (constant_array(optional_input(node, index)) for index in (0, 2, 3))
    if table is None or scales is None or (zeros is None) != (optional_input(node, 3) is None):
        raise builder.unsupported(node, "its table is computed at run time")
    axis, bits = int(attribute(node, "quantize_axis", 1)), int(attribute(node, "bits", 4))
    block = int(attribute(node, "block_size", 128))
    packed = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8
    if packed:
        axis = table.ndim - 1 if axis == -1 else axis
        if bits < 8 and axis != table.ndim - 1:
            raise builder.unsupported(node, f"its bytes lie along axis {axis}, expected the last")
        table = unpacked(table, bits)
        if zeros is None:
            zeros = np.full((), 2.0 ** (bits - 1))
        elif bits < 8:
            zeros = unpacked(zeros, bits)[..., : scales.shape[-1]]
    zeros = np.zeros(()) if zeros is None else zeros
    step, offset = (broadcast_scale(a, table.shape, axis, block) for a in (scales, zeros))
    floats = builder.const(f"{_input_name(node, 0)}_float", (table - offset) * step)
    attributes = {"axis": int(attribute(node, "gather_axis", 0))}
    real = builder.add(node, "Gather", [floats, node.inputs[1]], attributes, node.outputs[0])
    builder.replace_value(node.outputs[0], real)


def dynamic_lstm(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace DynamicQuantizeLSTM by LSTM.

    Its weights are [directions, input, 4 * hidden], those of LSTM [directions, 4 * hidden, input].
    """
    floats = []
    for index, scale_at in ((1, 8), (2, 10)):
        codes, scale, zero = (
            constant_array(optional_input(node, i)) for i in (index, scale_at, scale_at + 1)
        )
        if codes is None or scale is None or zero is None:
            raise builder.unsupported(node, "its weights are computed at run time")
        step, offset = (a.reshape(codes.shape[0], 1, -1) for a in (scale, zero))
        values = np.swapaxes((codes - offset) * step, 1, 2)
        floats.append(builder.const(f"{_input_name(node, index)}_float", values))
    inputs: list[ir.Value | None] = [node.inputs[0], *floats]
    inputs += [optional_input(node, index) for index in range(3, 8)]
    while inputs[-1] is None:
        inputs.pop()
    names = ("direction", "hidden_size", "activations", "activation_alpha", "activation_beta",
             "clip", "input_forget")  # fmt: skip
    attributes = {name: node.attributes[name] for name in names if name in node.attributes}
    outputs = builder.add_several(node, "LSTM", inputs, attributes, node.outputs)
    for old, new in zip(node.outputs, outputs, strict=True):
        if old.name:
            builder.replace_value(old, new)


def _input_name(node: ir.Node, index: int) -> str:
    """Return the name of an input, from which the name of its float form is made."""
    value = node.inputs[index]
    return str(value.name) if value is not None else "weight"
