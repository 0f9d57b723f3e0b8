"""Folding of BatchNormalization into the weights of the layer before or after it.

Source: Jacob et al. 2018, sec. 3.2, arXiv:1712.05877: W' = W * gamma / sigma,
b' = beta + (b - mean) * gamma / sigma, with sigma = sqrt(var + epsilon), computed in float64.
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.edit import add_constant, drop, replace_value
from qtool.graph.queries import attribute, constant, dims, is_constant, sole_reader, weight_axis
from qtool.rewrites.rewrite import IsInteger


def batchnorm_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Compute the per-channel affine map of a BatchNormalization in inference mode.

    scale = gamma / sqrt(var + epsilon), shift = beta - mean * scale

    Args:
        node: any node.

    Returns:
        (scale, shift), float64 [C] each; None for another node, for training mode, for a variance
        below zero and where a parameter is computed at run time.
    """
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
        return None
    arrays = [constant(v) for v in node.inputs[1:5]]
    if any(a is None for a in arrays):
        return None
    gamma, beta, mean, var = (np.asarray(a, np.float64) for a in arrays)
    variance = var + float(attribute(node, "epsilon", 1e-5))
    if not (variance > 0).all():  # the runtime computes NaN, which calibration refuses by name
        return None
    scale = gamma / np.sqrt(variance)
    return scale, beta - mean * scale


def fold_batchnorm(model: ir.Model, is_integer: IsInteger) -> int:
    """Fold BatchNorm into the Conv, ConvTranspose or Gemm in front of it.

    A Pad of zeros between the two is no obstacle when the BatchNorm maps 0 to 0; otherwise the
    borders would change. Two things are stored for later stages: ``meta["batchnorm"] = (beta,
    |gamma|)`` on the output value, which data-free methods read, and ``meta["folded_norm"]`` on the
    layer, from which QAT restores the BatchNorm.
    """
    done = 0
    for norm in list(model.graph):
        affine = batchnorm_affine(norm)
        if affine is None:
            continue
        scale, shift = affine
        producer = _sole_source(norm)
        # Taken before the folding changes the layer's bias.
        folded_norm = FoldedNorm.of(norm, producer)
        if producer is not None and producer.op_type == "Pad":
            commutes = _pads_zeros(producer) and not shift.any()
            producer = _sole_source(producer) if commutes else None
        if producer is None or not scale_outputs(model.graph, producer, scale, shift):
            continue
        beta, gamma = constant(norm.inputs[2]), constant(norm.inputs[1])
        out = norm.outputs[0]
        replacement = norm.inputs[0]
        if replacement is None:
            raise AssertionError(f"{norm.name} lost its input")
        replace_value(out, replacement)
        if beta is not None and gamma is not None:
            replacement.meta["batchnorm"] = (beta, np.abs(gamma))
        drop(norm)
        # A second BatchNorm on one layer, or one after a Pad, cannot be restored from one record.
        restorable = "folded_norm" not in producer.meta and producer.outputs[0] is replacement
        producer.meta["folded_norm"] = folded_norm if restorable else None
        done += 1
    return done


def _sole_source(node: ir.Node) -> ir.Node | None:
    """Return the producer of a node's first input if nothing else reads that value, else None."""
    source = node.inputs[0]
    if source is None or sole_reader(source) is not node:
        return None
    return source.producer()


def scale_outputs(graph: ir.Graph, node: ir.Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    """Fold ``y * scale + shift`` into the weights and bias of the layer that computes ``y``.

    Args:
        graph: of the node.
        node: any node; changed in place when it is a Conv, ConvTranspose or Gemm that allows it.
        scale: float64 [C], per output channel.
        shift: float64 [C].

    Returns:
        Whether the layer was changed.
    """
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or (bias_value is not None and not is_constant(bias_value)):
        return False
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if not plain or attribute(node, "transA", 0):
            return False
    # A grouped ConvTranspose stores [C_in, C_out / group, ...]: no axis lists all output channels.
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        return False
    axis = weight_axis(node)
    shape = [1] * weight.ndim
    shape[axis] = -1
    if weight.shape[axis] != scale.size:
        return False
    bias = constant(bias_value)
    # A Gemm's bias may have a row per sample; only one value per output channel can be scaled.
    if bias is not None and bias.size != 1 and (bias.size, bias.shape[-1]) != (scale.size,) * 2:
        return False
    bias = np.zeros(1) if bias is None else bias.reshape(-1)
    set_constant(graph, node, 1, weight * scale.reshape(shape), weight.dtype)
    set_constant(graph, node, 2, bias * scale + shift, weight.dtype)
    return True


def set_constant(
    graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, dtype: np.dtype
) -> None:
    """Set a constant input of a node; a constant with other readers is copied, not changed."""
    old = node.inputs[index] if len(node.inputs) > index else None
    name = old.name if old is not None else f"{node.name}.bias"
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.Tensor(np.asarray(array.astype(dtype), order="C"), name=old.name)
        return
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_constant(graph, str(name), array.astype(dtype)))


def _pads_zeros(pad: ir.Node) -> bool:
    """Return whether a Pad adds constant zeros on spatial axes only."""
    if attribute(pad, "mode", "constant") != "constant":
        return False
    pads = constant(pad.inputs[1])
    if pads is None or np.any(pads.reshape(2, -1)[:, :2]):
        return False
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return True
    fill = constant(pad.inputs[2])
    return fill is not None and not fill.any()


def fold_batchnorm_into_next_conv(model: ir.Model, is_integer: IsInteger) -> int:
    """Fold a BatchNorm into the Conv after it, where that is exact.

    W'[o, i] = W[o, i] * scale[i], b'[o] = b[o] + sum over i, k of W[o, i, k] * shift[i]

    A Conv that pads qualifies only if the BatchNorm maps 0 to 0: its pads are zeros after the
    BatchNorm, which would be ``-shift / scale`` in front of it.
    """
    done = 0
    for norm in list(model.graph):
        affine = batchnorm_affine(norm)
        conv = sole_reader(norm.outputs[0]) if affine is not None else None
        if affine is None or conv is None or conv.op_type != "Conv" or norm.inputs[0] is None:
            continue
        scale, shift = affine
        weight = constant(conv.inputs[1])
        bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
        if weight is None or (bias_value is not None and not is_constant(bias_value)):
            continue
        pads = attribute(conv, "pads", ())
        auto = str(attribute(conv, "auto_pad", "NOTSET"))
        padded = any(pads) or auto.startswith("SAME")
        if (padded and shift.any()) or conv.inputs[0] is not norm.outputs[0]:
            continue
        group = int(attribute(conv, "group", 1))
        per_group = weight.shape[1]
        if per_group * group != scale.size or dims(norm.inputs[0]) is None:
            continue
        # Row o of the weight sees the input channels of its group.
        index = np.arange(weight.shape[0]) // (weight.shape[0] // group)
        channels = index[:, None] * per_group + np.arange(per_group)
        spatial = (1,) * (weight.ndim - 2)
        bias = constant(bias_value)
        bias = np.zeros(weight.shape[0]) if bias is None else bias
        offset = (weight.reshape(*weight.shape[:2], -1).sum(2) * shift[channels]).sum(1)
        scaled = weight * scale[channels].reshape(*channels.shape, *spatial)
        set_constant(model.graph, conv, 1, scaled, weight.dtype)
        set_constant(model.graph, conv, 2, bias + offset, weight.dtype)
        ir.convenience.replace_all_uses_with(norm.outputs[0], norm.inputs[0])
        drop(norm)
        done += 1
    return done
