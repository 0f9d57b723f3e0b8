"""Replacement of ReduceMean by global average pooling."""

import onnx_ir as ir

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.queries import attribute, constant, dims, is_float
from qtool.rewrites.rewrite import IsInteger


def reduce_mean_to_global_average_pool(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace ReduceMean over all spatial axes by GlobalAveragePool.

    Without ``keepdims`` a Flatten follows. Exporters write global pooling as ReduceMean, for which
    runtimes have no fused integer kernel.
    """
    done = 0
    for node in list(model.graph):
        shape = dims(node.inputs[0]) if node.inputs else None
        if node.op_type != "ReduceMean" or shape is None or len(shape) not in (3, 4, 5):
            continue
        if not is_float(node.inputs[0]):
            continue
        # The axes are an input from opset 18 on, an attribute before.
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
        if axes is None or {int(a) % len(shape) for a in axes} != set(range(2, len(shape))):
            continue
        x, out = node.inputs[0], node.outputs[0]
        pooled = (shape[0], shape[1], *[1] * (len(shape) - 2))
        y = add_node(node, "GlobalAveragePool", [x], name=f"{node.name}/pool", shape=pooled)
        if not attribute(node, "keepdims", 1):
            y = add_node(node, "Flatten", [y], {"axis": 1}, f"{node.name}/flatten", shape[:2])
        replace_value(out, y)
        drop(node)
        done += 1
    return done
