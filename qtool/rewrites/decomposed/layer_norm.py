"""Composition of LayerNormalization from its reductions and elementwise operators.

Source: Ba et al. 2016, Layer Normalization, sec. 3, arXiv:1607.06450.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant, add_node, drop, replace_value
from qtool.graph.queries import attribute, constant, dims, sole_reader
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.match import close, keeps_shape, scalar, source, split_constant
from qtool.rewrites.rewrite import IsInteger

# LayerNormalization became an operator in this opset.
OPSET = 17


@dataclass(frozen=True)
class Normalization:
    """A normalization of the last axis, matched.

    Attributes:
        last: the node that makes the result.
        x: the value that is normalized.
        epsilon: what is added to the variance.
        gamma: the scale [width]; None where there is none.
        beta: the shift [width]; None where there is none.
    """

    last: ir.Node
    x: ir.Value
    epsilon: float
    gamma: ir.Value | None
    beta: ir.Value | None


@dataclass(frozen=True)
class Moments:
    """Mean and deviation of the last axis, matched.

    Attributes:
        x: the value that they are taken of.
        mean: its mean.
        centered: x - mean, as the variance reads it.
        epsilon: what is added to the variance.
    """

    x: ir.Value
    mean: ir.Value
    centered: ir.Value
    epsilon: float


def compose_layer_norm(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace a normalization of the last axis, its scale and its shift by LayerNormalization.

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gamma + beta, also written as
    y = x * g + (beta - mean(x) * g) with g = gamma / sqrt(mean((x - mean(x))^2) + epsilon)
    """
    if model.opset_imports.get("", 1) < OPSET:
        return 0
    done = 0
    for node in list(model.graph):
        if node.graph is None:
            continue
        match = _centered_first(node) or _scaled_first(node)
        width = (dims(match.x) or (None,))[-1] if match is not None else None
        if match is None or not isinstance(width, int):
            continue
        last, name = match.last, f"{node.name}/layer_norm"
        gamma = match.gamma
        if gamma is None:
            gamma = add_constant(model.graph, f"{name}.gamma", np.ones(width, np.float32))
        inputs = [match.x, gamma] if match.beta is None else [match.x, gamma, match.beta]
        options = {"axis": -1, "epsilon": match.epsilon}
        y = add_node(last, "LayerNormalization", inputs, options, name)
        replace_value(last.outputs[0], y)
        drop(last)
        done += 1
    if done:
        remove_unused(model)
    return done


def constant_vector(node: ir.Node | None, op: str, width: object) -> ir.Value | None:
    """Return the constant [width] of a Mul or Add; None for another node or shape."""
    operands = split_constant(node) if node is not None and node.op_type == op else None
    array = None if operands is None else constant(operands[1])
    return operands[1] if operands and array is not None and array.shape == (width,) else None


def _centered_first(node: ir.Node) -> Normalization | None:
    """Match (x - mean) / deviation * gamma + beta at its Div; scale and shift may be absent."""
    pairs = ((centered, _moments(variance)) for centered, variance in divided_by_root(node))
    moments = next((m for centered, m in pairs if m is not None and m.centered is centered), None)
    if moments is None:
        return None
    width = (dims(moments.x) or (None,))[-1]
    last, scaled = node, sole_reader(node.outputs[0])
    gamma = constant_vector(scaled, "Mul", width)
    if scaled is not None and gamma is not None:
        last = scaled
    shifted = sole_reader(last.outputs[0])
    beta = constant_vector(shifted, "Add", width)
    if shifted is not None and beta is not None:
        last = shifted
    return Normalization(last, moments.x, moments.epsilon, gamma, beta)


def _scaled_first(node: ir.Node) -> Normalization | None:
    """Match x * g + (beta - mean * g) at its Add, as TensorFlow writes it."""
    if node.op_type != "Add":
        return None
    for product, offset in (node.inputs, node.inputs[::-1]):
        scaled, rest = source(product, "Mul"), source(offset, "Sub")
        shift = source(rest.inputs[1], "Mul") if rest is not None else None
        beta = rest.inputs[0] if rest is not None else None
        if scaled is None or shift is None or constant(beta) is None:
            continue
        for x, factor in (scaled.inputs, scaled.inputs[::-1]):
            moments, gamma = _inverse_deviation(factor)
            if moments is None or moments.x is not x or set(shift.inputs) != {moments.mean, factor}:
                continue
            width = (dims(x) or (None,))[-1]
            vectors = [constant(v) for v in (gamma, beta) if v is not None]
            if all(array is not None and array.shape == (width,) for array in vectors):
                return Normalization(node, moments.x, moments.epsilon, gamma, beta)
    return None


def _inverse_deviation(value: ir.Value | None) -> tuple[Moments | None, ir.Value | None]:
    """Return the moments and the scale, if any, of gamma / deviation."""
    node = value.producer() if value is not None else None
    if node is None:
        return None, None
    variance = _inverse_root(node)
    if variance is not None:
        return _moments(variance), None
    if node.op_type == "Div" and constant(node.inputs[0]) is not None:
        return _moments(_root_input(node.inputs[1])), node.inputs[0]
    operands = split_constant(node) if node.op_type == "Mul" else None
    inverse = operands[0].producer() if operands is not None else None
    if operands is None or inverse is None or source(operands[0], inverse.op_type) is None:
        return None, None
    return _moments(_inverse_root(inverse)), operands[1]


def divided_by_root(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value]]:
    """Yield (x, v) where a node may compute x / sqrt(v), by Div or by a product."""
    if node.op_type == "Div":
        root = _root_input(node.inputs[1])
        if root is not None:
            yield node.inputs[0], root
        return
    for x, factor in (node.inputs, node.inputs[::-1]) if node.op_type == "Mul" else ():
        inverse = factor.producer() if factor is not None else None
        if inverse is not None and source(factor, inverse.op_type) is not None:
            root = _inverse_root(inverse)
            if root is not None:
                yield x, root


def _root_input(value: ir.Value | None) -> ir.Value | None:
    """Return ``v`` of sqrt(v) that one node reads."""
    root = source(value, "Sqrt")
    return root.inputs[0] if root is not None else None


def _inverse_root(node: ir.Node) -> ir.Value | None:
    """Return ``v`` of a node that computes 1 / sqrt(v): by Reciprocal, Div or Pow."""
    if node.op_type == "Reciprocal":
        return _root_input(node.inputs[0])
    if node.op_type not in ("Div", "Pow"):
        return None
    x, number = node.inputs if node.op_type == "Pow" else node.inputs[::-1]
    if x is None or number is None or not keeps_shape(x, number):
        return None
    if node.op_type == "Pow":
        return x if close(scalar(number), -0.5) else None
    return _root_input(x) if close(scalar(number), 1.0) else None


def _moments(total: ir.Value | None) -> Moments | None:
    """Return the moments whose squared deviation is variance + epsilon."""
    node = source(total, "Add")
    operands = split_constant(node) if node is not None else None
    if operands is None:
        return None
    variance, epsilon = operands[0], scalar(operands[1])
    square = mean_input(source(variance, "ReduceMean"))
    centered = square_input(square.producer()) if square is not None else None
    difference = centered.producer() if centered is not None else None
    if epsilon is None or centered is None or difference is None or difference.op_type != "Sub":
        return None
    x, mean = difference.inputs
    reduced = mean.producer() if mean is not None else None
    if x is None or mean is None or reduced is None or reduced.op_type != "ReduceMean":
        return None
    return Moments(x, mean, centered, epsilon) if mean_input(reduced) is x else None


def square_input(node: ir.Node | None) -> ir.Value | None:
    """Return ``d`` of d^2, written as Pow or as a product."""
    if node is None:
        return None
    if node.op_type == "Pow" and close(scalar(node.inputs[1]), 2.0):
        return node.inputs[0]
    return node.inputs[0] if node.op_type == "Mul" and node.inputs[0] is node.inputs[1] else None


def mean_input(node: ir.Node | None) -> ir.Value | None:
    """Return ``v`` of a mean over the last axis that keeps the axis."""
    value = node.inputs[0] if node is not None else None
    shape = dims(value)
    if node is None or value is None or shape is None or not attribute(node, "keepdims", 1):
        return None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    if axes is None or [int(a) % len(shape) for a in np.atleast_1d(axes)] != [len(shape) - 1]:
        return None
    return value
