"""Rewrites of the first convolution into shapes that fast integer kernels accept.

ONNX Runtime's symmetric convolution kernel needs input channels divisible by four, which images
with three channels do not have. Both rewrites only add products with zero weights or reorder
elements, so they are exact. The added Pad and SpaceToDepth run on int8 data and cost little.
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant, add_node, set_attributes
from qtool.graph.queries import attribute, constant, dims
from qtool.rewrites.rewrite import IsInteger


def _first_convs(model: ir.Model, is_integer: IsInteger) -> list[tuple[ir.Node, np.ndarray]]:
    """Return the ungrouped 2-D convolutions that read a graph input, with their weights."""
    convs = []
    for node in model.graph:
        if node.op_type != "Conv" or node.inputs[0] is None or not is_integer(node):
            continue
        weight = constant(node.inputs[1])
        plain = attribute(node, "group", 1) == 1 and attribute(node, "auto_pad", "NOTSET") in (
            "NOTSET",
            "VALID",
        )
        if node.inputs[0].is_graph_input() and weight is not None and weight.ndim == 4 and plain:
            convs.append((node, weight))
    return convs


def pad_first_conv_channels(model: ir.Model, is_integer: IsInteger) -> int:
    """Pad the input and the weights of a three-channel first convolution to four channels."""
    done = 0
    for conv, weight in _first_convs(model, is_integer):
        if weight.shape[1] != 3:
            continue
        x = conv.inputs[0]
        shape = dims(x)
        pads = add_constant(
            model.graph, f"{conv.name}.channel_pads", np.array([0, 0, 0, 0, 0, 1, 0, 0])
        )
        padded_shape = None if shape is None else (shape[0], 4, *shape[2:])
        y = add_node(conv, "Pad", [x, pads], name=f"{conv.name}/pad_channels", shape=padded_shape)
        padded = np.pad(weight, ((0, 0), (0, 1), (0, 0), (0, 0)))
        name = f"{conv.inputs[1].name}_padded"  # type: ignore[union-attr]
        conv.replace_input_with(0, y)
        conv.replace_input_with(1, add_constant(model.graph, name, padded))
        done += 1
    return done


def space_to_depth_first_conv(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace a stride-2 first convolution by SpaceToDepth and a stride-1 convolution.

    SpaceToDepth with block size 2 moves each 2x2 block into channels, in the order (block row,
    block column, channel); the weights are rearranged the same way:

        W'[o, (r, s, c), i, j] = W[o, c, 2 i + r, 2 j + s]

    The input is first padded (or cropped by one row or column) to an even size, chosen so that the
    output keeps its shape and its values.
    """
    done = 0
    for conv, weight in _first_convs(model, is_integer):
        shape = dims(conv.inputs[0])
        # Image inputs only (at most 4 channels). An odd kernel k grows to k + 1 rows and columns:
        # 16 / 9 as many products for k = 3, too much for what is saved; 36 / 25 for k = 5.
        if shape is None or len(shape) != 4 or weight.shape[1] > 4 or max(weight.shape[2:]) < 5:
            continue
        height, width = shape[2:]
        strides, dilations = attribute(conv, "strides"), attribute(conv, "dilations", (1, 1))
        if strides != (2, 2) or dilations != (1, 1):
            continue
        if not isinstance(height, int) or not isinstance(width, int):
            continue
        top, left, bottom, right = attribute(conv, "pads") or (0, 0, 0, 0)
        bottom += _padding_to_even(height + top + bottom, weight.shape[2])
        right += _padding_to_even(width + left + right, weight.shape[3])
        x = conv.inputs[0]
        if any((top, left, bottom, right)):
            array = np.array([0, 0, top, left, 0, 0, bottom, right])
            pads = add_constant(model.graph, f"{conv.name}.pads", array)
            padded = (*shape[:2], height + top + bottom, width + left + right)
            x = add_node(conv, "Pad", [x, pads], name=f"{conv.name}/pad", shape=padded)
        blocks = add_node(
            conv, "SpaceToDepth", [x], {"blocksize": 2}, name=f"{conv.name}/space_to_depth"
        )
        name = f"{conv.inputs[1].name}_blocks"  # type: ignore[union-attr]
        conv.replace_input_with(0, blocks)
        conv.replace_input_with(1, add_constant(model.graph, name, _blocks(weight)))
        conv.meta["structural_zeros"] = True  # QAT does not train the padded zeros
        kernel = [(k + 1) // 2 for k in weight.shape[2:]]
        set_attributes(conv, kernel_shape=kernel, strides=[1, 1], pads=[0, 0, 0, 0])
        done += 1
    return done


def _padding_to_even(padded: int, kernel: int) -> int:
    """Return what to add to a padded size to make it even with the same number of outputs.

    Args:
        padded: size of the input with its pads.
        kernel: size of the kernel along the same axis.

    Returns:
        0, 1 (one more row of zeros) or -1 (the last row is cropped).
    """
    if padded % 2 == 0:
        return 0
    # outputs = (padded - kernel) // 2 + 1: with an odd size and an even kernel the last row is in
    # no window and can be cropped; with an odd kernel one more row makes no further window, and
    # the row of zeros that pads the kernel to an even size reads it.
    return -1 if kernel % 2 == 0 else 1


def _blocks(weight: np.ndarray) -> np.ndarray:
    """Rearrange weights into 2x2 blocks, with the channels in the order of SpaceToDepth.

    Args:
        weight: [O, C, kh, kw].

    Returns:
        [O, 4 C, ceil(kh / 2), ceil(kw / 2)]; odd kernels are padded with zeros at the end.
    """
    o, c, kh, kw = weight.shape
    even = np.pad(weight, ((0, 0), (0, 0), (0, kh % 2), (0, kw % 2)))
    cut = even.reshape(o, c, even.shape[2] // 2, 2, even.shape[3] // 2, 2)
    return cut.transpose(0, 3, 5, 1, 2, 4).reshape(o, 4 * c, cut.shape[2], cut.shape[4])
