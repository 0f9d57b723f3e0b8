"""Composition of Gelu from its elementwise operators.

Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, arXiv:1606.08415.
"""

from collections.abc import Callable, Iterator
from math import pi, sqrt

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.layer_norm import square_input
from qtool.rewrites.decomposed.match import close, divided, scalar, scalar_operand, source
from qtool.rewrites.rewrite import IsInteger

# Gelu became an operator in this opset.
OPSET = 20

# Factor of x^3 in the approximation.
CUBIC = 0.044715

Match = Callable[[ir.Value | None], ir.Value | None]


def compose_gelu(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace the operators of Gelu, by erf or approximated by tanh, by Gelu.

    gelu(x) = 0.5 * x * (1 + erf(x / sqrt(2))), or with
    tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)) instead of erf

    The three factors stand in any order.
    """
    if model.opset_imports.get("", 1) < OPSET:
        return 0
    done = 0
    for node in list(model.graph):
        for approximate, gate_input in GATES.items():
            x = _gelu_input(node, gate_input) if node.graph is not None else None
            if x is None:
                continue
            options = {"approximate": approximate}
            y = add_node(node, "Gelu", [x], options, f"{node.name}/gelu")
            replace_value(node.outputs[0], y)
            drop(node)
            done += 1
    if done:
        remove_unused(model)
    return done


def _gelu_input(node: ir.Node, gate_input: Match) -> ir.Value | None:
    """Return ``x`` of a node that computes gelu(x).

    Args:
        node: the last one.
        gate_input: returns x of the factor 1 + erf or 1 + tanh.
    """
    halved = divided(node, 2.0)
    if halved is not None:  # (x * gate) * 0.5
        product = source(halved, "Mul")
        return next((x for x, gate in _factors(product) if gate_input(gate) is x), None)
    for first, second in _factors(node):
        # x * (0.5 * gate), and (0.5 * x) * gate
        if gate_input(_halved(second)) is first:
            return first
        x = _halved(first)
        if x is not None and gate_input(second) is x:
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
    return _scaled(erf.inputs[0] if erf is not None else None, sqrt(0.5))


def _tanh_input(value: ir.Value | None) -> ir.Value | None:
    """Return ``x`` of ``1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))`` that one node reads."""
    tanh = source(scalar_operand(source(value, "Add"), "Add", 1.0), "Tanh")
    if tanh is None:
        return None
    for first, second in _factors(source(tanh.inputs[0], "Mul")):
        # sqrt(2 / pi) x (1 + 0.044715 x^2)
        x = _scaled(first, sqrt(2 / pi))
        square = scalar_operand(source(second, "Add"), "Add", 1.0)
        if x is not None and _is_square(square, x):
            return x
    total = source(_scaled(tanh.inputs[0], sqrt(2 / pi)), "Add")
    if total is None:
        return None
    for x, other in (total.inputs, total.inputs[::-1]):
        if x is not None and _cube_root(_scaled(other, CUBIC)) is x:
            return x
    return None


def _is_square(value: ir.Value | None, x: ir.Value) -> bool:
    """Return whether a value is 0.044715 x^2, the factor applied to x or to its square."""
    square = _scaled(value, CUBIC)
    if square is not None:
        power = square.producer()
        return power is not None and square_input(power) is x
    return any(
        second is x and _scaled(first, CUBIC) is x
        for first, second in _factors(source(value, "Mul"))
    )


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """Return ``v`` of ``v * factor`` that one node reads, written as Mul or Div."""
    node = value.producer() if value is not None else None
    if node is None or source(value, node.op_type) is None:
        return None
    return divided(node, 1 / factor)


def _cube_root(value: ir.Value | None) -> ir.Value | None:
    """Return ``x`` of ``x^3`` that one node reads, written as Pow or as products."""
    power = source(value, "Pow")
    if power is not None:
        return power.inputs[0] if close(scalar(power.inputs[1]), 3.0) else None
    for x, square in _factors(source(value, "Mul")):
        node = source(square, "Mul")
        if node is not None and node.inputs[0] is node.inputs[1] is x:
            return x
    return None


# The attribute ``approximate`` -> the match of its gate.
GATES: dict[str, Match] = {"none": _erf_input, "tanh": _tanh_input}
