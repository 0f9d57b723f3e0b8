"""Composition of Sigmoid from the exponential, as a part of SiLU above all."""

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.match import close, keeps_shape, scalar, scalar_operand, source
from qtool.rewrites.rewrite import IsInteger


def compose_sigmoid(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace 1 / (1 + exp(-x)) by Sigmoid, and y / (1 + exp(-x)) by y * sigmoid(x).

    sigmoid(x) = 1 / (1 + exp(-x)), silu(x) = x * sigmoid(x)
    """
    done = 0
    for node in list(model.graph):
        if node.op_type not in ("Div", "Reciprocal") or node.domain not in ("", "ai.onnx"):
            continue
        x = _negated_exponent(node.inputs[-1])
        if x is None:
            continue
        y = add_node(node, "Sigmoid", [x], name=f"{node.name}/sigmoid")
        numerator = node.inputs[0] if node.op_type == "Div" else None
        # A numerator of 1 may widen the result.
        one = numerator is None or (close(scalar(numerator), 1.0) and keeps_shape(x, numerator))
        if numerator is not None and not one:
            y = add_node(node, "Mul", [numerator, y], name=f"{node.name}/product")
        replace_value(node.outputs[0], y)
        drop(node)
        done += 1
    if done:
        remove_unused(model)
    return done


def _negated_exponent(value: ir.Value | None) -> ir.Value | None:
    """Return ``x`` of ``1 + exp(-x)`` that one node reads."""
    exponential = source(scalar_operand(source(value, "Add"), "Add", 1.0), "Exp")
    exponent = exponential.inputs[0] if exponential is not None else None
    negation = source(exponent, "Neg")
    if negation is not None:
        return negation.inputs[0]
    return scalar_operand(source(exponent, "Mul"), "Mul", -1.0)
