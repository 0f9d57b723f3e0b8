"""Composition of RMSNormalization from its reduction and elementwise operators.

Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization, eq. 4, arXiv:1910.07467.
"""

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.queries import dims, sole_reader
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.layer_norm import (
    constant_vector,
    divided_by_root,
    mean_input,
    square_input,
)
from qtool.rewrites.decomposed.match import scalar, source, split_constant
from qtool.rewrites.rewrite import IsInteger

# RMSNormalization became an operator in this opset.
OPSET = 23


def compose_rms_norm(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace a division by the root mean square of the last axis and its scale by one operator.

    y = x / sqrt(mean(x^2) + epsilon) * gamma

    The root is divided by, or its inverse multiplied with (Reciprocal, Div, or Pow by -1/2).
    """
    if model.opset_imports.get("", 1) < OPSET:
        return 0
    done = 0
    for node in list(model.graph):
        match = _normalized(node) if node.graph is not None else None
        scaled = sole_reader(node.outputs[0]) if match is not None else None
        if match is None or scaled is None:
            continue
        x, epsilon = match
        gamma = constant_vector(scaled, "Mul", (dims(x) or (None,))[-1])
        if gamma is None:
            continue
        options = {"axis": -1, "epsilon": epsilon}
        y = add_node(scaled, "RMSNormalization", [x, gamma], options, f"{node.name}/rms_norm")
        replace_value(scaled.outputs[0], y)
        drop(scaled)
        done += 1
    if done:
        remove_unused(model)
    return done


def _normalized(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return (x, epsilon) of a node that computes x / sqrt(mean(x^2) + epsilon)."""
    for x, total in divided_by_root(node):
        epsilon = _epsilon(x, total)
        if x is not None and epsilon is not None:
            return x, epsilon
    return None


def _epsilon(x: ir.Value | None, total: ir.Value) -> float | None:
    """Return epsilon of mean(x^2) + epsilon; None for another function."""
    node = source(total, "Add")
    operands = split_constant(node) if node is not None else None
    if operands is None:
        return None
    square = mean_input(source(operands[0], "ReduceMean"))
    same = square is not None and square_input(square.producer()) is x
    return scalar(operands[1]) if same and x is not None else None
