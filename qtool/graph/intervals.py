"""Bound the values of a graph from its weights alone, by interval arithmetic.

Behind a Clip every value is bounded, whatever the input; so is what a layer makes of it::

    upper = b + sum(max(w, 0) * upper(x) + min(w, 0) * lower(x))

and the other way round for the lower bound. The bounds are never too tight.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.layers import is_layer, oriented_weight
from qtool.graph.queries import attribute, clip_limits, constant, dims

PASSING = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Flatten")


@dataclass(frozen=True, eq=False)
class Interval:
    """Bounds of a value with its channels along axis 1, float64 [C]; infinite where unknown."""

    lower: np.ndarray
    upper: np.ndarray


def intervals(graph: ir.Graph) -> dict[ir.Value, Interval]:
    """Return bounds of the values behind convolutions and Gemm layers.

    Args:
        graph: read only.
    """
    bounds: dict[ir.Value, Interval] = {}
    for node in graph:
        x = bounds.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        x = _unbounded(node) if x is None and node.op_type == "Clip" else x
        y: Interval | None = None
        if is_layer(node) and node.op_type in ("Conv", "Gemm"):
            y = _layer(node, x)
        elif node.op_type in PASSING and x is not None:
            y = _passed(node, x)
        elif node.op_type == "Add":
            y = _sum([bounds.get(v) for v in node.inputs if v is not None])
        if y is not None:
            bounds[node.outputs[0]] = y
    return bounds


def _unbounded(node: ir.Node) -> Interval | None:
    shape = dims(node.outputs[0])
    size = shape[1] if shape is not None and len(shape) > 1 else None
    return (
        Interval(np.full(size, -np.inf), np.full(size, np.inf)) if isinstance(size, int) else None
    )


def _layer(node: ir.Node, x: Interval | None) -> Interval:
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    w = oriented_weight(node)
    groups, outputs, inputs, _ = w.shape
    size = groups * outputs
    if x is None or x.upper.size != groups * inputs:
        return Interval(np.full(size, -np.inf), np.full(size, np.inf))
    lower, upper = x.lower, x.upper
    if any(attribute(node, "pads", ())) or str(attribute(node, "auto_pad", "")).startswith("SAME"):
        lower, upper = np.minimum(lower, 0), np.maximum(upper, 0)
    positive, negative = np.clip(w, 0, None).sum(3), np.clip(w, None, 0).sum(3)
    shape = (groups, 1, inputs)
    lower, upper = lower.reshape(shape), upper.reshape(shape)
    shift = 0.0 if bias is None else bias.astype(np.float64).reshape(-1)
    high = _products(positive, upper) + _products(negative, lower)
    low = _products(positive, lower) + _products(negative, upper)
    return Interval(low.sum(2).reshape(-1) + shift, high.sum(2).reshape(-1) + shift)


def _products(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return w * x, with 0 * infinity = 0."""
    x = np.broadcast_to(x, w.shape)
    return np.multiply(w, x, out=np.zeros_like(w), where=w != 0)


def _passed(node: ir.Node, x: Interval) -> Interval | None:
    if node.op_type in ("Relu", "Clip"):
        low, high = clip_limits(node)
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        return Interval(np.clip(x.lower, low, high), np.clip(x.upper, low, high))
    if node.op_type == "Flatten":  # exact where nothing is behind the channels
        out = node.outputs[0].shape
        return x if out is not None and len(out) == 2 and out[1] == x.upper.size else None
    if node.op_type == "AveragePool":  # pads may count as zeros
        return Interval(np.minimum(x.lower, 0), np.maximum(x.upper, 0))
    return x


def _sum(parts: list[Interval | None]) -> Interval | None:
    terms = [p for p in parts if p is not None]
    if len(terms) < 2 or len({p.upper.size for p in terms}) > 1:
        return None
    return Interval(sum(p.lower for p in terms), sum(p.upper for p in terms))  # type: ignore[arg-type]
