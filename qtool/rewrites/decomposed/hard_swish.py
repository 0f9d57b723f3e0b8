"""Composition of HardSigmoid and HardSwish from their elementwise operators.

Source: Howard et al. 2019, Searching for MobileNetV3, sec. 5.2, arXiv:1905.02244.
"""

from collections.abc import Callable

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.queries import attribute, sole_reader
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.decomposed.match import (
    clipped_between,
    close,
    divided,
    scalar_operand,
    scalar_term,
    source,
)
from qtool.rewrites.rewrite import IsInteger

Match = Callable[[ir.Value | None], ir.Value | None]

# Layers that take in what follows them alone.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# HardSwish became an operator in this opset.
OPSET = 14


def compose_hard_swish(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace Add 3, Clip 0..6, Div 6 by HardSigmoid, and with the Mul by its input, HardSwish.

    hard_sigmoid(x) = min(max(x + 3, 0), 6) / 6, hard_swish(x) = x * hard_sigmoid(x)

    The division stands in front of the product or behind it, as Div or as Mul by 1/6; Relu, Max and
    Min may stand for the Clip. min(max(alpha x + beta, 0), 1) is a HardSigmoid too, but where a
    convolution could take in the factor, the offset and the limits.
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
            match = _hard_sigmoid(node)
            if match is None:
                continue
            x, alpha, beta = match
            slope = {"alpha": alpha, "beta": beta}
            y = add_node(node, "HardSigmoid", [x], slope, f"{node.name}/hard_sigmoid")
        replace_value(node.outputs[0], y)
        drop(node)
        done += 1
    if done:
        remove_unused(model)
    return done


def _hard_sigmoid(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """Return (x, alpha, beta) of a node that computes min(max(alpha x + beta, 0), 1)."""
    x = _relu6_input(divided(node, 6.0))
    if x is not None:
        return x, 1 / 6, 0.5
    shifted = scalar_term(source(clipped_between(node, 0.0, 1.0), "Add"), "Add")
    if shifted is None:
        return None
    product, beta = shifted
    scaled = scalar_term(source(product, "Mul"), "Mul")
    if scaled is None:
        divided_by = scalar_term(source(product, "Div"), "Div")
        if divided_by is None or divided_by[1] == 0:
            return None
        scaled = divided_by[0], 1 / divided_by[1]
    x, alpha = scaled
    layer = x.producer()
    is_folded = layer is not None and layer.op_type in LAYERS and sole_reader(x) is not None
    return None if is_folded else (x, alpha, beta)


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
    return _relu6_input(divided(producer, 6.0))


def _factor(product: ir.Node, gate_input: Match) -> ir.Value | None:
    """Return ``x`` of ``x * gate(x)``, in either order."""
    first, second = product.inputs
    for x, gate in ((first, second), (second, first)):
        if x is not None and gate is not x and gate_input(gate) is x:
            return x
    return None
