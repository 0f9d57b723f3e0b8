"""Corrections for operators whose semantics ``onnx.version_converter`` does not preserve.

The converter gives Upsample and Resize from before opset 11 the defaults of the new Resize
(half-pixel centres). It does not change Hardmax from before opset 13, which flattened its input to
a matrix.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.queries import attribute, constant, rank


def restore_semantics(model: ir.Model, before: int, path: Path) -> None:
    """Correct, in place, the nodes whose semantics changed while the opset was raised.

    Args:
        model: raised from opset ``before``, with constants as initializers.
        before: the opset of the file.
        path: for messages.

    Raises:
        UnsupportedError: a node has no equivalent in newer opsets; names it.
    """
    for node in list(model.graph.all_nodes()):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Resize" and before < 11:
            _resize(node, path)
        if node.op_type == "Hardmax" and before < 13:
            _hardmax(node)


def _resize(node: ir.Node, path: Path) -> None:
    """Set the coordinate mode and the rounding that Resize had before opset 11.

    x_original = x_resized / scale ("asymmetric"); "nearest" rounds down when it enlarges and up
    when it shrinks. The specification of opset 10 leaves the rounding open; its test cases and
    ONNX Runtime agree on this one.
    """
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    pixel = "floor"
    if attribute(node, "mode", "nearest") == "nearest":
        if scales is None or (np.any(scales < 1) and np.any(scales > 1)):
            shown = "computed" if scales is None else scales.tolist()
            raise UnsupportedError(
                f'model {path}: node "{node.name}": a nearest Resize from before opset 11 with '
                f"scales {shown} has no exact form in newer opsets, expected constants that all "
                "grow or all shrink; export the model again with opset 11 or newer"
            )
        pixel = "ceil" if np.any(scales < 1) else "floor"
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", pixel)


def _hardmax(node: ir.Node) -> None:
    """Add Flatten and Reshape around a Hardmax from before opset 13.

    It put one 1 in each row of the matrix [axes before ``axis``, axes from ``axis`` on]; the
    default axis was 1.
    """
    axis, x = int(attribute(node, "axis", 1)), node.inputs[0]
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    if x is None or node.graph is None or axis in (-1, (rank(x) or 0) - 1):
        return
    shape = ir.Node("", "Shape", [x], name=f"{node.name}/shape")
    flat = ir.Node("", "Flatten", [x], [ir.AttrInt64("axis", axis)], name=f"{node.name}/flatten")
    back = ir.Node("", "Reshape", [node.outputs[0], shape.outputs[0]], name=f"{node.name}/restore")
    out, new = node.outputs[0], back.outputs[0]
    for added in (shape, flat, back):
        added.outputs[0].name = f"{out.name}_{added.op_type.lower()}"
    node.graph.insert_before(node, [shape, flat])
    node.graph.insert_after(node, back)
    node.replace_input_with(0, flat.outputs[0])
    name, new.type, new.shape = out.name, out.type, out.shape
    out.name, out.shape, new.name = f"{name}_rows", None, name
    for reader, index in list(out.uses()):
        if reader is not back:
            reader.replace_input_with(index, new)
    for index, value in enumerate(node.graph.outputs):
        if value is out:
            node.graph.outputs[index] = new
