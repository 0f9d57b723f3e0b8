"""Reshapes to a computed shape, in the form that stays in integers."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant
from qtool.graph.queries import constant, dims
from qtool.rewrites.cleanup import remove_unused


def make_reshapes_static(model: ir.Model, quantized: Callable[[ir.Node], bool]) -> int:
    """Give a Reshape whose shape is computed a constant one, where at most one size is unknown.

    Exporters compute the shape of a Flatten or view from the batch size; -1 says the same, as long
    as no size is 0.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
            continue
        shape = dims(node.outputs[0])
        if shape is None or node.inputs[1] is None:
            continue
        sizes = [d if isinstance(d, int) else -1 for d in shape]
        if sizes.count(-1) > 1 or 0 in sizes:
            continue
        node.replace_input_with(1, add_constant(model.graph, f"{node.name}.shape", np.array(sizes)))
        done += 1
    if done:
        remove_unused(model)
    return done
