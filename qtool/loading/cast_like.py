"""Replacement of CastLike, which prevents constant folding, by Cast."""

import onnx_ir as ir


def replace_cast_like(model: ir.Model) -> None:
    """Replace CastLike by Cast where the type of its second input is known, in place.

    CastLike reads only the type of its second input. If that is an activation, the node depends on
    the graph's input, and constants after it, such as biases of zeros, cannot be folded.
    """
    for node in model.graph.all_nodes():
        like = node.inputs[1] if node.op_type == "CastLike" and len(node.inputs) > 1 else None
        if like is None or like.dtype is None:
            continue
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))
