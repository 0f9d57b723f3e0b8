"""CastLike, which exporters write around constants, in the form that constants fold through."""

import onnx_ir as ir


def cast_outright(model: ir.Model) -> None:
    """Turn CastLike into Cast where the type is known: only its type is read from the other value.

    Behind a CastLike of an activation nothing can be folded, biases of zeros for example.
    """
    for node in model.graph.all_nodes():
        like = node.inputs[1] if node.op_type == "CastLike" and len(node.inputs) > 1 else None
        if like is None or like.dtype is None:
            continue
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))
