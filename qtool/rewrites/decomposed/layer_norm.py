"""Composition of LayerNormalization from its reductions and elementwise operators.

Source: Ba et al. 2016, Layer Normalization, sec. 3, arXiv:1607.06450.
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.queries import attribute, constant, dims, sole_reader
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.match import close, scalar, source, split_constant
from qtool.rewrites.rewrite import IsInteger

# LayerNormalization became an operator in this opset.
OPSET = 17


def compose_layer_norm(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace a normalization of the last axis, its scale and its shift by LayerNormalization.

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gamma + beta
    """
    if model.opset_imports.get("", 1) < OPSET:
        return 0
    done = 0
    for node in list(model.graph):
        match = _normalized(node) if node.graph is not None and node.op_type == "Div" else None
        if match is None:
            continue
        x, epsilon = match
        width = (dims(x) or (None,))[-1]
        scaled = sole_reader(node.outputs[0])
        gamma = constant_vector(scaled, "Mul", width)
        if scaled is None or gamma is None:
            continue
        last, inputs = scaled, [x, gamma]
        shifted = sole_reader(scaled.outputs[0])
        beta = constant_vector(shifted, "Add", width)
        if shifted is not None and beta is not None:
            last, inputs = shifted, [x, gamma, beta]
        options = {"axis": -1, "epsilon": epsilon}
        y = add_node(last, "LayerNormalization", inputs, options, f"{node.name}/layer_norm")
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


def _normalized(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return (x, epsilon) of a Div that computes (x - mean) / sqrt(variance + epsilon)."""
    centered, deviation = node.inputs
    root = source(deviation, "Sqrt")
    total = source(root.inputs[0], "Add") if root is not None else None
    operands = split_constant(total) if total is not None else None
    if centered is None or operands is None:
        return None
    variance, epsilon = operands[0], scalar(operands[1])
    square = mean_input(source(variance, "ReduceMean"))
    difference = centered.producer()
    if epsilon is None or square is None or difference is None or difference.op_type != "Sub":
        return None
    x, mean = difference.inputs
    if x is None or mean_input(source(mean, "ReduceMean")) is not x:
        return None
    return (x, epsilon) if square_input(square.producer()) is centered else None


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
