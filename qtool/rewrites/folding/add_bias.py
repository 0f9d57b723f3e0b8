"""Give every layer with weights a bias, so that steps can correct it."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant
from qtool.graph.queries import constant

# Gemm with alpha = beta = 1 is the form that linear layers have after the other rewrites.
BIAS_INPUT = {"Conv": 2, "Gemm": 2}


def add_bias(model: ir.Model, is_integer: Callable[[ir.Node], bool]) -> int:
    """Add a bias of zeros to every Conv and Gemm that has constant weights and no bias.

    Args:
        model: the rewritten graph.
        is_integer: whether a node may compute on codes; others are left as they are.

    Returns:
        The number of nodes that got a bias.
    """
    times = 0
    for node in list(model.graph):
        position = BIAS_INPUT.get(node.op_type)
        weight = constant(node.inputs[1]) if position and len(node.inputs) > 1 else None
        if weight is None or position is None or not is_integer(node):
            continue
        if len(node.inputs) > position and node.inputs[position] is not None:
            continue
        transposed = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
        channels = weight.shape[0] if transposed else weight.shape[1]
        value = add_constant(model.graph, f"{node.name}_bias", np.zeros(channels, np.float32))
        if len(node.inputs) <= position:
            node.resize_inputs(position + 1)
        node.replace_input_with(position, value)
        times += 1
    return times
