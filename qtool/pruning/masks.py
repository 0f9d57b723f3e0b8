"""Choose the weights that stay: masks by sparsity and by the N:M pattern.

A mask is a boolean array of the weight's shape, False where the weight becomes 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, weight_axis


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: ``n`` weights stay of each ``m`` consecutive ones along the input channels."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def input_axis(node: ir.Node) -> int:
    """Return the axis of the input channels in the weight of a weighted node."""
    return 1 - weight_axis(node)


def divides(pattern: Pattern, shape: tuple[int, ...], node: ir.Node) -> bool:
    """Return whether the input channels of each group of a layer split into groups of m."""
    size = shape[input_axis(node)]
    if node.op_type == "ConvTranspose":  # its weight has the input channels of all groups
        size //= int(attribute(node, "group", 1))
    return size % pattern.m == 0


def smallest_removed(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Return a mask without the round(sparsity x count) smallest scores; of equal ones the first.

    Args:
        scores: importance of each weight, any shape.
        sparsity: share to remove, 0 to 1.
    """
    mask = np.ones(scores.size, bool)
    order = np.argsort(scores, axis=None, kind="stable")
    mask[order[: round(sparsity * scores.size)]] = False
    return mask.reshape(scores.shape)


def smallest_removed_globally(
    scores: Mapping[str, np.ndarray], sparsity: float
) -> dict[str, np.ndarray]:
    """Return masks of several weights, in which one limit holds for all of them.

    Args:
        scores: name -> importance of each weight, comparable between the weights.
        sparsity: share of all weights to remove, 0 to 1.
    """
    if not scores:
        return {}
    mask = smallest_removed(np.concatenate([s.reshape(-1) for s in scores.values()]), sparsity)
    stops = np.cumsum([s.size for s in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(mask, stops), strict=True)
    return {name: part.reshape(array.shape) for (name, array), part in parts}


def n_of_m(scores: np.ndarray, pattern: Pattern, axis: int) -> np.ndarray:
    """Return a mask with the n largest scores of each m consecutive ones; of equal ones the last.

    Args:
        scores: importance of each weight.
        pattern: n and m; m divides the size of the axis.
        axis: of the input channels.
    """
    last = np.moveaxis(scores, axis, -1)
    groups = last.reshape(-1, pattern.m)
    order = np.argsort(groups, axis=1, kind="stable")
    mask = np.ones(groups.shape, bool)
    np.put_along_axis(mask, order[:, : pattern.m - pattern.n], False, 1)
    return np.moveaxis(mask.reshape(last.shape), -1, axis)
