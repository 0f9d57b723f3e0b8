"""Checks for graphs that cannot be quantized: random numbers, limits that are NaN, and text."""

import numpy as np
import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.queries import RANDOM_OPS, captured, constant

# Operator -> the reason, as it completes the error message.
RANDOM = {
    **dict.fromkeys(RANDOM_OPS, "draws random numbers"),
    "Dropout": "is in training mode, where it drops values at random",
}


def check_supported(model: ir.Model, name: str) -> None:
    """Check that a graph is deterministic, is limited by numbers, and makes no text of its inputs.

    Text that depends on no input is allowed, since constant folding removes it.

    Args:
        model: with constants as initializers, node names and inferred types.
        name: of the model, for messages.

    Raises:
        UnsupportedError: names the first random node, Clip with a NaN, or node that makes text.
    """
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        _check_limits(node, name)
        if node.op_type in RANDOM and _is_random(node):
            advice = "export the network in eval mode"
            if node.op_type != "Dropout":
                advice += ", or make the random numbers an input"
            raise UnsupportedError(
                f'model {name}: node "{node.name}" ({node.op_type}) {RANDOM[node.op_type]}, so no '
                f"two runs agree and the quantized file cannot be compared with the model; {advice}"
            )
    reached = set(model.graph.inputs)
    for node in model.graph:
        if not reached.intersection((*node.inputs, *captured(node))):
            continue
        reached.update(node.outputs)
        for value in node.outputs:
            if value.dtype == ir.DataType.STRING:
                raise UnsupportedError(
                    f'model {name}: node "{node.name}" ({node.op_type}) makes text, '
                    f'"{value.name}"; expected numbers throughout: export the model without it'
                )


def _check_limits(node: ir.Node, name: str) -> None:
    """Refuse a Clip whose limit is NaN: what it computes differs from one kernel to the next."""
    limits = node.inputs[1:] if node.op_type == "Clip" else ()
    for value in filter(None, limits):
        array = constant(value)
        if array is not None and np.isnan(array.astype(np.float64)).any():
            raise UnsupportedError(
                f'model {name}: node "{node.name}" (Clip) has the limit "{value.name}", which is '
                "NaN; expected a number: export the model again"
            )


def _is_random(node: ir.Node) -> bool:
    """Return whether an operator of RANDOM has random outputs that are used.

    A Dropout is random in training mode with a ratio other than 0.
    """
    if not any(v.uses() or v.is_graph_output() for v in node.outputs):
        return False
    if node.op_type != "Dropout":
        return True
    ratio, training = (constant(node.inputs[k]) if len(node.inputs) > k else None for k in (1, 2))
    return training is not None and bool(training.any()) and (ratio is None or bool(ratio.any()))
