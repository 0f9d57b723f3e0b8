"""Composition of Gelu from its elementwise operators.

Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, arXiv:1606.08415.
"""

from collections.abc import Iterator
from math import sqrt

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.match import divided, scalar_operand, source
from qtool.rewrites.rewrite import IsInteger

# Gelu became an operator in this opset.
OPSET = 20


def compose_gelu(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace Div by sqrt(2), Erf, Add 1 and the products by x and 0.5 by Gelu.

    gelu(x) = 0.5 * x * (1 + erf(x / sqrt(2)))

    The three factors stand in any order.
    """
    if model.opset_imports.get("", 1) < OPSET:
        return 0
    done = 0
    for node in list(model.graph):
        if node.graph is None:
            continue
        x = _gelu_input(node)
        if x is None:
            continue
        replace_value(node.outputs[0], add_node(node, "Gelu", [x], name=f"{node.name}/gelu"))
        drop(node)
        done += 1
    if done:
        remove_unused(model)
    return done


def _gelu_input(node: ir.Node) -> ir.Value | None:
    """Return ``x`` of a node that computes gelu(x)."""
    halved = divided(node, 2.0)
    if halved is not None:  # (x * (1 + erf)) * 0.5
        product = source(halved, "Mul")
        return next((x for x, gate in _factors(product) if _erf_input(gate) is x), None)
    for first, second in _factors(node):
        # x * (0.5 * (1 + erf)), and (0.5 * x) * (1 + erf)
        if _erf_input(_halved(second)) is first:
            return first
        x = _halved(first)
        if x is not None and _erf_input(second) is x:
            return x
    return None


def _factors(node: ir.Node | None) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the two operands of a Mul in both orders."""
    if node is None or node.op_type != "Mul":
        return
    first, second = node.inputs
    if first is not None and second is not None:
        yield first, second
        yield second, first


def _halved(value: ir.Value | None) -> ir.Value | None:
    """Return ``v`` of ``v / 2`` that one node reads."""
    node = value.producer() if value is not None else None
    return None if node is None or source(value, node.op_type) is None else divided(node, 2.0)


def _erf_input(value: ir.Value | None) -> ir.Value | None:
    """Return ``x`` of ``1 + erf(x / sqrt(2))`` that one node reads."""
    erf = source(scalar_operand(source(value, "Add"), "Add", 1.0), "Erf")
    scaled = erf.inputs[0] if erf is not None else None
    node = scaled.producer() if scaled is not None else None
    if node is None or source(scaled, node.op_type) is None:
        return None
    return divided(node, sqrt(2.0))
