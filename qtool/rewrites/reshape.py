"""Replacement of computed Reshape shapes by constants."""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant
from qtool.graph.queries import constant, dims
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.rewrite import IsInteger


def make_reshapes_static(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace the computed shape of a Reshape by a constant with at most one -1.

    Exporters compute the shape of a flatten or view from the batch size. Where inference knows all
    sizes but one, -1 has the same meaning, provided that no size is 0: in a Reshape a 0 copies the
    size of the input.
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
