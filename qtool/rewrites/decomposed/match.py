"""Queries that match the operators of a decomposed function."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import clip_limits, constant, dims, rank, sole_reader

COMMUTATIVE = ("Add", "Mul")


def scalar(value: ir.Value | None) -> float | None:
    """Return the number in a constant of one element, else None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def close(value: float | None, expected: float) -> bool:
    """Return whether a constant is the expected number within float32 rounding."""
    return value is not None and abs(value - expected) <= 1e-6 * max(1.0, abs(expected))


def split_constant(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return (computed operand, constant operand) of a binary node; None for other nodes.

    The constant of Sub and Div must be the second operand.
    """
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    if constant(second) is not None and constant(first) is None:
        return first, second
    if node.op_type in COMMUTATIVE and constant(first) is not None and constant(second) is None:
        return second, first
    return None


def scalar_operand(node: ir.Node | None, op: str, expected: float) -> ir.Value | None:
    """Return the computed operand of ``op(x, expected)``; None where a node is another function.

    The constant must not widen the result: its rank is at most that of ``x``.
    """
    term = scalar_term(node, op)
    return term[0] if term is not None and close(term[1], expected) else None


def scalar_term(node: ir.Node | None, op: str) -> tuple[ir.Value, float] | None:
    """Return the computed operand and the number of ``op(x, number)``; None for another node."""
    if node is None or node.op_type != op or node.domain not in ("", "ai.onnx"):
        return None
    operands = split_constant(node)
    number = scalar(operands[1]) if operands is not None else None
    if operands is None or number is None or not keeps_shape(*operands):
        return None
    return operands[0], number


def divided(node: ir.Node | None, by: float) -> ir.Value | None:
    """Return ``x`` of ``x / by``, written as Div or as Mul by the reciprocal."""
    operand = scalar_operand(node, "Div", by)
    return operand if operand is not None else scalar_operand(node, "Mul", 1 / by)


def keeps_shape(x: ir.Value, other: ir.Value) -> bool:
    """Return whether an elementwise op of ``x`` and a constant has the shape of ``x``."""
    shape, constant_shape = dims(x), dims(other) or ()
    if all(d == 1 for d in constant_shape):
        dimensions = rank(x)
        return not constant_shape or len(constant_shape) <= (dimensions or 0)
    if shape is None or len(constant_shape) > len(shape):
        return False
    tail = shape[len(shape) - len(constant_shape) :]
    return all(c in (1, d) for c, d in zip(constant_shape, tail, strict=True))


def source(value: ir.Value | None, op: str) -> ir.Node | None:
    """Return the producer of a value if it is of kind ``op`` and nothing else reads the value."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != op or sole_reader(value) is None:
        return None
    return node


def clipped_between(node: ir.Node | None, low: float, high: float) -> ir.Value | None:
    """Return ``x`` of ``min(max(x, low), high)``; None where a node is another function.

    The limits stand in a Clip, or in one or two of Relu, Max, Min and Clip.
    """
    limits = [-np.inf, np.inf]
    while node is not None:
        bounds = _bounds(node)
        if bounds is None:
            return None
        x, lower, upper = bounds
        limits = [max(limits[0], lower), min(limits[1], upper)]
        if close(limits[0], low) and close(limits[1], high):
            return x
        behind = x.producer()
        node = source(x, behind.op_type) if behind is not None else None
    return None


def _bounds(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """Return (x, low, high) of a node that limits x; None for other nodes."""
    if node.op_type in ("Max", "Min") and len(node.inputs) == 2:
        for x, limit in (node.inputs, node.inputs[::-1]):
            number = scalar(limit)
            if x is not None and limit is not None and number is not None and keeps_shape(x, limit):
                return (x, number, np.inf) if node.op_type == "Max" else (x, -np.inf, number)
        return None
    x = node.inputs[0] if node.inputs else None
    if x is None or node.op_type not in ("Relu", "Clip"):
        return None
    low, high = (0.0, None) if node.op_type == "Relu" else clip_limits(node)
    return x, -np.inf if low is None else low, np.inf if high is None else high


def as_vector(array: np.ndarray, channels: int, value_rank: int, axis: int) -> np.ndarray | None:
    """Return a constant operand as float64 [channels]; None where it varies along another axis.

    Args:
        array: a scalar, or one number for each channel in the shape that broadcasting needs.
        channels: size of the channel axis.
        value_rank: dimensions of the other operand.
        axis: the channel axis of the other operand.
    """
    if array.size == 1 and array.ndim <= value_rank:
        return np.full(channels, float(array.reshape(())), np.float64)
    padded = array.reshape((1,) * (value_rank - array.ndim) + array.shape)
    if padded.ndim != value_rank or padded.size != channels or padded.shape[axis] != channels:
        return None
    return padded.reshape(-1).astype(np.float64)
