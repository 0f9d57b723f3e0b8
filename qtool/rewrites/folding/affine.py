"""Folding of constant factors and offsets into the layer before or after them.

Learnable affine blocks (LCNetV3) and normalizations that exporters decomposed leave a Mul and an
Add by a scalar or by one number a channel.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.edit import add_constant, drop, replace_value
from qtool.graph.queries import attribute, constant, dims, is_constant, is_float, rank, sole_reader
from qtool.rewrites.decomposed.match import as_vector, keeps_shape, split_constant
from qtool.rewrites.folding.fold_batchnorm import scale_outputs, set_constant
from qtool.rewrites.rewrite import IsInteger

LAYERS = ("Conv", "ConvTranspose")
# op -> the constant that leaves the other operand unchanged
NEUTRAL = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}

# A smaller factor would make the offset t / s large, and its rounding with it.
SMALLEST = 1e-4


def remove_neutral_operands(model: ir.Model, is_integer: IsInteger) -> int:
    """Remove products with 1 and sums with 0, which exporters write for unused parameters."""
    done = 0
    for node in list(model.graph):
        operands = split_constant(node) if node.op_type in NEUTRAL else None
        if operands is None or not is_float(operands[0]) or not keeps_shape(*operands):
            continue
        x, array = operands[0], constant(operands[1])
        out = node.outputs[0]
        if array is None or np.any(array != NEUTRAL[node.op_type]) or out.is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(out, x)
        drop(node)
        done += 1
    return done


def fold_affine(model: ir.Model, is_integer: IsInteger) -> int:
    """Fold Mul, Div, Add and Sub by constants behind a convolution into its weights and bias.

    W' = s W, b' = s b + t
    """
    done = 0
    for node in list(model.graph):
        operands = split_constant(node) if node.op_type in NEUTRAL else None
        layer = operands[0].producer() if operands is not None else None
        if operands is None or layer is None or layer.op_type not in LAYERS:
            continue
        x = operands[0]
        if sole_reader(x) is not node:
            continue
        affine = _affine(node, x, operands[1], constant(layer.inputs[1]), layer)
        if affine is None or not scale_outputs(model.graph, layer, *affine):
            continue
        _update_folded_norm(layer, x, *affine)
        replace_value(node.outputs[0], x)
        drop(node)
        done += 1
    return done


def _affine(
    node: ir.Node, x: ir.Value, operand: ir.Value, weight: np.ndarray | None, layer: ir.Node
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (scale, shift), float64 [C_out], of an op behind a convolution."""
    array, dimensions = constant(operand), rank(x)
    if array is None or weight is None or not np.isfinite(array).all():
        return None
    channels = weight.shape[0 if layer.op_type == "Conv" else 1]
    # The rank of a weight is that of the output, where shape inference has none.
    vector = as_vector(array, channels, dimensions or weight.ndim, 1)
    return None if vector is None else _scale_and_shift(node.op_type, vector)


def _scale_and_shift(op: str, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return scale and shift of one binary op with a constant; None for a division by zero."""
    if op == "Div" and not vector.all():
        return None
    if op in ("Mul", "Div"):
        return vector if op == "Mul" else 1 / vector, np.zeros_like(vector)
    return np.ones_like(vector), vector if op == "Add" else -vector


def _update_folded_norm(
    layer: ir.Node, out: ir.Value, scale: np.ndarray, shift: np.ndarray
) -> None:
    """Apply scale and shift to the records of a BatchNorm that was folded into the layer before."""
    norm = layer.meta.get("folded_norm")
    if isinstance(norm, FoldedNorm):
        gamma, beta = scale * norm.gamma, scale * norm.beta + shift
        layer.meta["folded_norm"] = replace(norm, gamma=gamma, beta=beta)
    if "batchnorm" in out.meta:
        beta, gamma = out.meta["batchnorm"]
        out.meta["batchnorm"] = (scale * beta + shift, np.abs(scale) * gamma)


def fold_affine_into_next_conv(model: ir.Model, is_integer: IsInteger) -> int:
    """Fold Mul and Add by constants in front of a convolution into its weights and bias.

    W'[o, i] = W[o, i] s[i], b'[o] = b[o] + sum over i, k of W[o, i, k] t[i]

    In front of a convolution that pads, an offset stays, since its pads are zeros behind it; a
    factor passes it: s x + t = s (x + t / s).
    """
    done = 0
    for conv in list(model.graph):
        while conv.op_type == "Conv" and _fold_input(model.graph, conv):
            done += 1
    return done


def _fold_input(graph: ir.Graph, conv: ir.Node) -> bool:
    """Fold the op in front of a Conv, or the Mul in front of its Add; return True when one was."""
    weight, bias = constant(conv.inputs[1]), conv.inputs[2] if len(conv.inputs) > 2 else None
    last = _sole_producer(conv.inputs[0], conv)
    if weight is None or last is None or (bias is not None and not is_constant(bias)):
        return False
    channels = weight.shape[1] * int(attribute(conv, "group", 1))
    affine = _input_affine(last, channels, weight.ndim)
    if affine is None:
        return False
    scale, shift = affine
    if not shift.any():
        _scale_inputs(graph, conv, scale)
    elif not _pads(conv):
        _add_to_bias(graph, conv, weight, shift)
    else:
        return _exchange(graph, conv, last, shift)
    _bypass(last)
    return True


def _exchange(graph: ir.Graph, conv: ir.Node, add: ir.Node, shift: np.ndarray) -> bool:
    """Let a factor pass the offset between it and a Conv: s x + t = s (x + t / s).

    Args:
        graph: of the nodes.
        conv: takes the factor into its weights.
        add: Add or Sub by a constant, which only ``conv`` reads.
        shift: t, float64 [C].

    Returns:
        True when there was a factor.
    """
    operands = split_constant(add)
    mul = _sole_producer(operands[0], add) if operands is not None else None
    rank_of_input = len(dims(conv.inputs[1]) or ())
    factor = _input_affine(mul, shift.size, rank_of_input) if mul is not None else None
    if operands is None or mul is None or factor is None or factor[1].any():
        return False
    scale, old = factor[0], constant(operands[1])
    if np.abs(scale).min() < SMALLEST or old is None:
        return False
    offset = (shift / scale).astype(old.dtype)
    uniform = bool(np.all(offset == offset[0]))
    shaped = offset[:1] if uniform else offset.reshape(-1, *(1,) * (rank_of_input - 2))
    add.replace_input_with(
        0 if add.inputs[0] is operands[1] else 1,
        add_constant(graph, f"{add.name}.offset", shaped),
    )
    add.op_type = "Add"
    _scale_inputs(graph, conv, scale)
    _bypass(mul)
    return True


def _sole_producer(value: ir.Value | None, reader: ir.Node) -> ir.Node | None:
    """Return the producer of a value that only ``reader`` reads."""
    return value.producer() if value is not None and sole_reader(value) is reader else None


def _input_affine(
    node: ir.Node, channels: int, value_rank: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (scale, shift), float64 [channels], of a Mul, Div, Add or Sub by a constant."""
    operands = split_constant(node) if node.op_type in NEUTRAL else None
    array = constant(operands[1]) if operands is not None else None
    if operands is None or array is None or not np.isfinite(array).all():
        return None
    x = operands[0]
    shape = dims(x)
    if not is_float(x) or (shape is not None and len(shape) != value_rank):
        return None
    if shape is not None and shape[1] != channels and array.size != 1:
        return None
    vector = as_vector(array, channels, value_rank, 1)
    return None if vector is None else _scale_and_shift(node.op_type, vector)


def _pads(conv: ir.Node) -> bool:
    auto = str(attribute(conv, "auto_pad", "NOTSET"))
    return any(attribute(conv, "pads", ())) or auto.startswith("SAME")


def _input_channels(conv: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Return the input channel that each element [o, i] of a grouped weight reads."""
    group, per_group = int(attribute(conv, "group", 1)), weight.shape[1]
    index = np.arange(weight.shape[0]) // (weight.shape[0] // group)
    return index[:, None] * per_group + np.arange(per_group)


def _scale_inputs(graph: ir.Graph, conv: ir.Node, scale: np.ndarray) -> None:
    weight = constant(conv.inputs[1])
    if weight is None:
        raise AssertionError(f"{conv.name} lost its weight")
    factor = scale[_input_channels(conv, weight)]
    spatial = (1,) * (weight.ndim - 2)
    scaled = weight * factor.reshape(*factor.shape, *spatial)
    set_constant(graph, conv, 1, scaled, weight.dtype)


def _add_to_bias(graph: ir.Graph, conv: ir.Node, weight: np.ndarray, shift: np.ndarray) -> None:
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    bias = np.zeros(weight.shape[0]) if bias is None else bias
    summed = weight.astype(np.float64).reshape(*weight.shape[:2], -1).sum(2)
    offset = (summed * shift[_input_channels(conv, weight)]).sum(1)
    norm = conv.meta.get("folded_norm")
    if isinstance(norm, FoldedNorm):
        factor = norm.gamma / np.sqrt(norm.var + norm.epsilon)
        # Without a factor nothing of the offset passes, and no bias in front of it explains it.
        conv.meta["folded_norm"] = (
            replace(norm, bias=norm.bias + offset / factor) if factor.all() else None
        )
    set_constant(graph, conv, 2, bias + offset, weight.dtype)


def _bypass(node: ir.Node) -> None:
    """Remove a binary op whose reader does its work."""
    operands = split_constant(node)
    if operands is None:
        raise AssertionError(f"{node.name} has no constant operand")
    ir.convenience.replace_all_uses_with(node.outputs[0], operands[0])
    drop(node)
