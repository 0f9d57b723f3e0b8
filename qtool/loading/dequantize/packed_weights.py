"""Operators of ONNX Runtime that keep their weights packed, back to floats.

Source: ONNX Runtime's docs/ContribOperators.md (MatMulNBits, GatherBlockQuantized,
DynamicQuantizeLSTM).
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute
from qtool.loading.dequantize.affine import numbers, spread
from qtool.loading.dequantize.float_graph import Floating


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes from bytes along the last axis; the first code lies in the lowest bits.

    Args:
        packed: [..., bytes], 0..255.
        bits: of a code: 1, 2, 4 or 8.

    Returns:
        float64 [..., bytes * 8 / bits].
    """
    each = packed.astype(np.uint8)[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
    codes = each & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1).astype(np.float64)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def matmul_nbits(work: Floating, node: ir.Node) -> None:
    """MatMulNBits: A [.., K] times a constant [N, K] in blocks along K."""
    k, n = int(attribute(node, "K")), int(attribute(node, "N"))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size"))
    packed, scales, zeros = (numbers(_input(node, index)) for index in (1, 2, 3))
    if packed is None or scales is None or (zeros is None) != (_input(node, 3) is None):
        raise work.refuse(node, "its weights are computed at run time")
    if _input(node, 4) is not None or 8 % bits:
        raise work.refuse(node, f"group indices or {bits} bits are not known here")
    blocks = -(-k // block)
    codes = unpacked(packed.reshape(n, blocks, -1), bits)[..., :block]
    if zeros is None:
        zeros = np.full((n, blocks), 2.0 ** (bits - 1))
    elif _input(node, 3).dtype == ir.DataType.UINT8:  # type: ignore[union-attr]
        zeros = unpacked(zeros.reshape(n, -1), bits)[:, :blocks]
    values = (codes - zeros.reshape(n, blocks, 1)) * scales.reshape(n, blocks, 1)
    weight = work.const(f"{_named(node, 1)}_float", values.reshape(n, -1)[:, :k].T)
    real = work.add(node, "MatMul", [node.inputs[0], weight], like=node.outputs[0])
    bias = _input(node, 5)
    if bias is not None:
        real = work.add(node, "Add", [real, bias], like=real)
    work.become(node.outputs[0], real)


def gather_block(work: Floating, node: ir.Node) -> None:
    """GatherBlockQuantized: rows of a constant in blocks along one axis."""
    table, scales, zeros = (numbers(_input(node, index)) for index in (0, 2, 3))
    if table is None or scales is None or (zeros is None) != (_input(node, 3) is None):
        raise work.refuse(node, "its table is computed at run time")
    axis, bits = int(attribute(node, "quantize_axis", 1)), int(attribute(node, "bits", 4))
    block = int(attribute(node, "block_size", 128))
    packed = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8
    if packed:
        axis = table.ndim - 1 if axis == -1 else axis
        if bits < 8 and axis != table.ndim - 1:
            raise work.refuse(node, f"its bytes lie along axis {axis}, expected the last")
        table = unpacked(table, bits)
        if zeros is None:
            zeros = np.full((), 2.0 ** (bits - 1))
        elif bits < 8:
            zeros = unpacked(zeros, bits)[..., : scales.shape[-1]]
    zeros = np.zeros(()) if zeros is None else zeros
    step, offset = (spread(a, table.shape, axis, block) for a in (scales, zeros))
    floats = work.const(f"{_named(node, 0)}_float", (table - offset) * step)
    kept = {"axis": int(attribute(node, "gather_axis", 0))}
    real = work.add(node, "Gather", [floats, node.inputs[1]], kept, node.outputs[0])
    work.become(node.outputs[0], real)


def dynamic_lstm(work: Floating, node: ir.Node) -> None:
    """DynamicQuantizeLSTM: an LSTM with transposed weights, [directions, input, 4 * hidden]."""
    floats = []
    for index, scale_at in ((1, 8), (2, 10)):
        codes, scale, zero = (numbers(_input(node, i)) for i in (index, scale_at, scale_at + 1))
        if codes is None or scale is None or zero is None:
            raise work.refuse(node, "its weights are computed at run time")
        step, offset = (a.reshape(codes.shape[0], 1, -1) for a in (scale, zero))
        values = np.swapaxes((codes - offset) * step, 1, 2)
        floats.append(work.const(f"{_named(node, index)}_float", values))
    inputs: list[ir.Value | None] = [node.inputs[0], *floats]
    inputs += [_input(node, index) for index in range(3, 8)]
    while inputs[-1] is None:
        inputs.pop()
    names = ("direction", "hidden_size", "activations", "activation_alpha", "activation_beta",
             "clip", "input_forget")  # fmt: skip
    kept = {name: node.attributes[name] for name in names if name in node.attributes}
    outputs = work.add_several(node, "LSTM", inputs, kept, node.outputs)
    for old, new in zip(node.outputs, outputs, strict=True):
        if old.name:
            work.become(old, new)


def _named(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return str(value.name) if value is not None else "weight"
