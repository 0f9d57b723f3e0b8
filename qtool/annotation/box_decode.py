"""Find the layers of a detector that decode boxes: their weights are fixed numbers, not learned.

Codes of 8 bits for a box are coarser than what decoding makes of the heads' own codes, and these
layers are too small to save time.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import WEIGHTED_OPS, constant, name_of, producer_behind

# Ops that leave values as they are, or clip them.
TRANSPARENT = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"),
        *("Relu", "LeakyRelu", "Clip", "Pad", "MaxPool", "AveragePool", "GlobalAveragePool"),
    }
)

# A matrix that makes corners of centers and sizes has 16 numbers, a head of a detector hundreds.
MAX_FIXED = 64


def box_decode_reasons(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Map each layer of fixed numbers to the reason why it stays float.

    These are the mean of a distribution, sum_k k * softmax(x)_k, and products of decoded values
    with at most ``MAX_FIXED`` multiples of 1/2.

    Source: the mean is the integral of Li et al. 2020, Generalized Focal Loss, eq. 4,
        arXiv:2006.04388.

    Args:
        nodes: of the main graph, in order.
    """
    reasons = {}
    for node in nodes:
        weight = constant(node.inputs[1]) if node.op_type in WEIGHTED_OPS else None
        if weight is None or weight.dtype.kind != "f" or not _is_fixed(weight):
            continue
        producer = producer_behind(node.inputs[0], TRANSPARENT)
        if producer is None or producer.op_type in WEIGHTED_OPS:
            continue
        if producer.op_type == "Softmax" and _outputs(node, weight) == 1:
            reasons[name_of(node)] = "it computes the mean of a distribution, which decodes boxes"
        elif weight.size <= MAX_FIXED:
            reasons[name_of(node)] = "its weights are fixed numbers, which decode boxes"
    return reasons


def _is_fixed(weight: np.ndarray) -> bool:
    """Return whether all weights are multiples of 1/2; zeros alone decode nothing."""
    with np.errstate(over="ignore"):
        return bool(weight.any()) and np.array_equal(2 * weight, np.round(2 * weight))


def _outputs(node: ir.Node, weight: np.ndarray) -> int:
    """Return how many numbers a layer computes at each position."""
    transposed = node.attributes.get_int("transB", 0)
    return weight.shape[0] if node.op_type == "Conv" or transposed else weight.shape[-1]
