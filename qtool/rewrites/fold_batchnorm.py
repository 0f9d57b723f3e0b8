"""BatchNorm into the weights of its neighbour.

Source: Jacob et al. 2018, sec. 3.2, arXiv:1712.05877: W' = W * gamma / sigma,
b' = beta + (b - mean) * gamma / sigma, computed in float64.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.edit import add_constant, drop, take_over
from qtool.graph.queries import attribute, constant, dims, is_constant, sole_reader, weight_axis

Quantized = Callable[[ir.Node], bool]


def batchnorm_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, shift) per channel, float64, of a constant BatchNorm in inference mode, else None."""
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
        return None
    arrays = [constant(v) for v in node.inputs[1:5]]
    if any(a is None for a in arrays):
        return None
    gamma, beta, mean, var = (np.asarray(a, np.float64) for a in arrays)
    scale = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
    return scale, beta - mean * scale


def fold_batchnorm(model: ir.Model, quantized: Quantized) -> int:
    """Fold BatchNorm into the Conv, ConvTranspose or Gemm in front of it.

    A Pad of zeros in between is passed when the BatchNorm maps 0 to 0 (else borders would change).
    Leaves ``meta["batchnorm"] = (beta, |gamma|)`` on the value, for data-free methods, and on the
    node ``meta["folded_norm"]``, for training that undoes the folding.
    """
    done = 0
    for norm in list(model.graph):
        affine = batchnorm_affine(norm)
        if affine is None:
            continue
        scale, shift = affine
        producer = _sole_source(norm)
        kept = FoldedNorm.of(norm, producer)
        if producer is not None and producer.op_type == "Pad":
            passes = _pads_zeros(producer) and not shift.any()
            producer = _sole_source(producer) if passes else None
        if producer is None or not _scale_outputs(model.graph, producer, scale, shift):
            continue
        beta, gamma = constant(norm.inputs[2]), constant(norm.inputs[1])
        out = norm.outputs[0]
        replacement = norm.inputs[0]
        if replacement is None:
            raise AssertionError(f"{norm.name} lost its input")
        take_over(out, replacement)
        if beta is not None and gamma is not None:
            replacement.meta["batchnorm"] = (beta, np.abs(gamma))
        drop(norm)
        alone = "folded_norm" not in producer.meta and producer.outputs[0] is replacement
        producer.meta["folded_norm"] = kept if alone else None
        done += 1
    return done


def _sole_source(node: ir.Node) -> ir.Node | None:
    """The node that makes this one's first input, when nothing else reads it."""
    source = node.inputs[0]
    if source is None or sole_reader(source) is not node:
        return None
    return source.producer()


def _scale_outputs(graph: ir.Graph, node: ir.Node, scale: np.ndarray, shift: np.ndarray) -> bool:
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
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        return False
    axis = weight_axis(node)
    shape = [1] * weight.ndim
    shape[axis] = -1
    if weight.shape[axis] != scale.size:
        return False
    bias = constant(bias_value)
    if bias is not None and bias.size != 1 and (bias.size, bias.shape[-1]) != (scale.size,) * 2:
        return False
    bias = np.zeros(1) if bias is None else bias.reshape(-1)
    _set(graph, node, 1, weight * scale.reshape(shape), weight.dtype)
    _set(graph, node, 2, bias * scale + shift, weight.dtype)
    return True


def _set(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, dtype: np.dtype) -> None:
    """Give the node its own constant; a tied weight is copied, since only this reader changes."""
    old = node.inputs[index] if len(node.inputs) > index else None
    name = old.name if old is not None else f"{node.name}.bias"
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.Tensor(np.asarray(array.astype(dtype), order="C"), name=old.name)
        return
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_constant(graph, str(name), array.astype(dtype)))


def _pads_zeros(pad: ir.Node) -> bool:
    if attribute(pad, "mode", "constant") != "constant":
        return False
    pads = constant(pad.inputs[1])
    if pads is None or np.any(pads.reshape(2, -1)[:, :2]):
        return False
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return True
    fill = constant(pad.inputs[2])
    return fill is not None and not fill.any()


def fold_batchnorm_into_next_conv(model: ir.Model, quantized: Quantized) -> int:
    """Fold a BatchNorm into the Conv behind it, where that is exact.

    The Conv must not pad, unless the BatchNorm maps 0 to 0: pads put zeros behind the BatchNorm.
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
        add = (weight.reshape(*weight.shape[:2], -1).sum(2) * shift[channels]).sum(1)
        scaled = weight * scale[channels].reshape(*channels.shape, *spatial)
        _set(model.graph, conv, 1, scaled, weight.dtype)
        _set(model.graph, conv, 2, bias + add, weight.dtype)
        ir.convenience.replace_all_uses_with(norm.outputs[0], norm.inputs[0])
        drop(norm)
        done += 1
    return done
