"""Read the weights of linear layers in one form, whatever their op."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, constant, dims, is_constant, rank


def is_layer(node: ir.Node) -> bool:
    """Return whether a node is linear with a constant weight whose axes are parts."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if not is_constant(weight) or not all(is_constant(v) for v in node.inputs[2:] if v is not None):
        return False
    if node.op_type == "MatMul":
        return rank(weight) == 2 and (rank(node.outputs[0]) or 0) >= 2
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        bias = dims(node.inputs[2]) if len(node.inputs) > 2 else (0,)
        return plain and not attribute(node, "transA", 0) and bias is not None and len(bias) == 1
    return True


def layer_weight(node: ir.Node) -> np.ndarray:
    """Return the constant weight of a layer, in the form of its op."""
    weight = constant(node.inputs[1])
    if weight is None:
        raise AssertionError(f"{node.name} has no constant weight")
    return weight


def oriented_weight(node: ir.Node) -> np.ndarray:
    """Return the constant weight of a layer as float64, see :func:`oriented`."""
    return oriented(node, layer_weight(node).astype(np.float64))


def oriented(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Return a weight as [groups, outputs of a group, inputs of a group, kernel]."""
    if node.op_type in ("Gemm", "MatMul"):
        matrix = weight if attribute(node, "transB", 0) else weight.T
        return matrix[None, :, :, None]
    groups = int(attribute(node, "group", 1))
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split if node.op_type == "Conv" else split.swapaxes(1, 2)


def restored(node: ir.Node, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo :func:`oriented`.

    Args:
        node: of the layer.
        array: [groups, outputs of a group, inputs of a group, kernel].
        shape: of the weight.
    """
    if node.op_type in ("Gemm", "MatMul"):
        return array[0, :, :, 0] if attribute(node, "transB", 0) else array[0, :, :, 0].T
    return (array if node.op_type == "Conv" else array.swapaxes(1, 2)).reshape(shape)


def channel_sums(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return sum(W * x) over input channels and kernel, of an input constant in each channel.

    Args:
        weight: [groups, outputs of a group, inputs of a group, kernel], see :func:`oriented`.
        x: a value of each input channel, [groups * inputs of a group].

    Returns:
        [groups * outputs of a group].
    """
    summed = weight.sum(3)
    return np.asarray((summed * x.reshape(summed.shape[0], 1, -1)).sum(2).reshape(-1))
