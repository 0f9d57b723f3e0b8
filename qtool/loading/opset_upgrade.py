"""What ``onnx.version_converter`` raises without keeping the meaning, put right afterwards.

It gives Upsample and Resize from before opset 11 the defaults of the new Resize (half-pixel
centres), and leaves Hardmax from before opset 13, which saw its input as a matrix, as it was.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.queries import attribute, constant, rank


def restore_meaning(model: ir.Model, before: int, path: Path) -> None:
    """Rewrite in place the nodes whose meaning changed on the way up.

    Args:
        model: raised from opset ``before``, its constants lifted.
        before: the opset it was written for.
        path: for messages.

    Raises:
        UnsupportedError: no new form has the old meaning (names the node).
    """
    for node in list(model.graph.all_nodes()):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Resize" and before < 11:
            _resize(node, path)
        if node.op_type == "Hardmax" and before < 13:
            _hardmax(node)


def _resize(node: ir.Node, path: Path) -> None:
    """Corners meet corners (asymmetric); nearest takes the lower pixel, the upper when shrinking.

    The specification left the pixel open; ONNX's own test of opset 10 and ONNX Runtime agree on it.
    """
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    pixel = "floor"
    if attribute(node, "mode", "nearest") == "nearest":
        if scales is None or (np.any(scales < 1) and np.any(scales > 1)):
            found = "computed" if scales is None else scales.tolist()
            raise UnsupportedError(
                f'model {path}: node "{node.name}": a nearest Resize from before opset 11 with '
                f"scales {found} has no exact form in newer opsets, expected constants that all "
                "grow or all shrink; export the model again with opset 11 or newer"
            )
        pixel = "ceil" if np.any(scales < 1) else "floor"
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", pixel)


def _hardmax(node: ir.Node) -> None:
    """One 1 per row of the matrix [axes before ``axis``, the others], default axis 1."""
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
