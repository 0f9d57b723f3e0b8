"""Graphs whose result cannot be compared: random numbers, and text computed from the input."""

import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.queries import captured, constant

RANDOM = {
    "RandomNormal": "draws random numbers",
    "RandomNormalLike": "draws random numbers",
    "RandomUniform": "draws random numbers",
    "RandomUniformLike": "draws random numbers",
    "Multinomial": "draws random numbers",
    "Bernoulli": "draws random numbers",
    "Dropout": "is in training mode, where it drops values at random",
}


def check_supported(model: ir.Model, name: str) -> None:
    """Stop where no two runs agree, or where values between the inputs and outputs are text.

    Text that no input reaches is computed once and goes.

    Args:
        model: with constants as initializers, node names and inferred types.
        name: the model, for messages.

    Raises:
        UnsupportedError: names the first such node.
    """
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and node.op_type in RANDOM and _draws(node):
            what = "export the network in eval mode"
            if node.op_type != "Dropout":
                what += ", or make the random numbers an input"
            raise UnsupportedError(
                f'model {name}: node "{node.name}" ({node.op_type}) {RANDOM[node.op_type]}, so no '
                f"two runs agree and the quantized file cannot be compared with the model; {what}"
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


def _draws(node: ir.Node) -> bool:
    """Whether a node of a kind in RANDOM is random, and anything depends on it."""
    if not any(v.uses() or v.is_graph_output() for v in node.outputs):
        return False
    if node.op_type != "Dropout":
        return True
    ratio, training = (constant(node.inputs[k]) if len(node.inputs) > k else None for k in (1, 2))
    return training is not None and bool(training.any()) and (ratio is None or bool(ratio.any()))
