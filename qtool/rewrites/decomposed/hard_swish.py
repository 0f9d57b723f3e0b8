"""Composition of HardSigmoid and HardSwish from their elementwise operators.

Source: Howard et al. 2019, Searching for MobileNetV3, sec. 5.2, arXiv:1905.02244.
"""

from collections.abc import Callable

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.queries import attribute
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.match import clipped_between, close, divided, scalar_operand, source
from qtool.rewrites.rewrite import IsInteger

Match = Callable[[ir.Value | None], ir.Value | None]

# HardSwish became an operator in this opset.
OPSET = 14


def compose_hard_swish(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace Add 3, Clip 0..6, Div 6 by HardSigmoid, and with the Mul by its input, HardSwish.

    hard_sigmoid(x) = min(max(x + 3, 0), 6) / 6, hard_swish(x) = x * hard_sigmoid(x)

    The division stands in front of the product or behind it, as Div or as Mul by 1/6; Relu, Max and
    Min may stand for the Clip.
    """
    has_hard_swish = model.opset_imports.get("", 1) >= OPSET
    done = 0
    for node in list(model.graph):
        if node.graph is None:
            continue
        x = _hard_swish_input(node) if has_hard_swish else None
        if x is not None:
            y = add_node(node, "HardSwish", [x], name=f"{node.name}/hard_swish")
        else:
            x = _hard_sigmoid_input(node)
            if x is None:
                continue
            slope = {"alpha": 1 / 6, "beta": 0.5}
            y = add_node(node, "HardSigmoid", [x], slope, f"{node.name}/hard_sigmoid")
        replace_value(node.outputs[0], y)
        drop(node)
        done += 1
    if done:
        remove_unused(model)
    return done


def _hard_sigmoid_input(node: ir.Node) -> ir.Value | None:
    """Return ``x`` of a node that computes relu6(x + 3) / 6."""
    return _relu6_input(divided(node, 6.0))


def _relu6_input(value: ir.Value | None) -> ir.Value | None:
    """Return ``x`` of relu6(x + 3) that one node reads."""
    last = value.producer() if value is not None else None
    clipped = clipped_between(source(value, last.op_type), 0.0, 6.0) if last is not None else None
    return scalar_operand(source(clipped, "Add"), "Add", 3.0)


def _hard_swish_input(node: ir.Node) -> ir.Value | None:
    """Return ``x`` of a node that computes hard_swish(x) from its operators or a HardSigmoid."""
    product = source(divided(node, 6.0), "Mul")
    if product is not None:  # x * relu6(x + 3) / 6
        return _factor(product, _relu6_input)
    if node.op_type != "Mul":
        return None
    return _factor(node, _gate_input)


def _gate_input(value: ir.Value | None) -> ir.Value | None:
    """Return ``x`` of hard_sigmoid(x) that one node reads."""
    gate = source(value, "HardSigmoid")
    if gate is not None:
        alpha, beta = (float(attribute(gate, k, d)) for k, d in (("alpha", 0.2), ("beta", 0.5)))
        return gate.inputs[0] if close(alpha, 1 / 6) and close(beta, 0.5) else None
    producer = value.producer() if value is not None else None
    if producer is None or source(value, producer.op_type) is None:
        return None
    return _hard_sigmoid_input(producer)


def _factor(product: ir.Node, gate_input: Match) -> ir.Value | None:
    """Return ``x`` of ``x * gate(x)``, in either order."""
    first, second = product.inputs
    for x, gate in ((first, second), (second, first)):
        if x is not None and gate is not x and gate_input(gate) is x:
            return x
    return None
