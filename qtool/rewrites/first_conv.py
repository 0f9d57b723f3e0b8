"""Forms of the first convolution that reach fast integer kernels. Both are bit-exact.

ONNX Runtime's symmetric convolution kernel needs input channels divisible by four; three-channel
images miss it. On codes the extra Pad and SpaceToDepth cost next to nothing.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant, add_node, set_attributes
from qtool.graph.queries import attribute, constant, dims

Quantized = Callable[[ir.Node], bool]


def _first_convs(model: ir.Model, quantized: Quantized) -> list[tuple[ir.Node, np.ndarray]]:
    """Plain 2-D convolutions that read a graph input, with their weights."""
    found = []
    for node in model.graph:
        if node.op_type != "Conv" or node.inputs[0] is None or not quantized(node):
            continue
        weight = constant(node.inputs[1])
        plain = attribute(node, "group", 1) == 1 and attribute(node, "auto_pad", "NOTSET") in (
            "NOTSET",
            "VALID",
        )
        if node.inputs[0].is_graph_input() and weight is not None and weight.ndim == 4 and plain:
            found.append((node, weight))
    return found


def pad_first_conv_channels(model: ir.Model, quantized: Quantized) -> int:
    """Pad a three-channel input to four channels with zeros, and the weights likewise."""
    done = 0
    for conv, weight in _first_convs(model, quantized):
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


def space_to_depth_first_conv(model: ir.Model, quantized: Quantized) -> int:
    """Turn a stride-2 convolution with a kernel of 5 or more into stride 1 on 2x2 blocks.

    SpaceToDepth gathers each 2x2 block into channels (block row, block column, channel), the kernel
    is cut the same way. The input is padded (or cropped by one) to an even size first, so that the
    outputs are the same in number and in value.
    """
    done = 0
    for conv, weight in _first_convs(model, quantized):
        shape = dims(conv.inputs[0])
        if shape is None or len(shape) != 4 or weight.shape[1] > 4 or max(weight.shape[2:]) < 5:
            continue
        height, width = shape[2:]
        strides, dilations = attribute(conv, "strides"), attribute(conv, "dilations", (1, 1))
        if strides != (2, 2) or dilations != (1, 1):
            continue
        if not isinstance(height, int) or not isinstance(width, int):
            continue
        top, left, bottom, right = attribute(conv, "pads") or (0, 0, 0, 0)
        bottom += _even(height + top + bottom, weight.shape[2])
        right += _even(width + left + right, weight.shape[3])
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
        conv.meta["structural_zeros"] = True  # training must leave them alone
        kernel = [(k + 1) // 2 for k in weight.shape[2:]]
        set_attributes(conv, kernel_shape=kernel, strides=[1, 1], pads=[0, 0, 0, 0])
        done += 1
    return done


def _even(padded: int, kernel: int) -> int:
    """How much to add so that the size is even and no output appears or vanishes."""
    if padded % 2 == 0:
        return 0
    return -1 if kernel % 2 == 0 else 1


def _blocks(weight: np.ndarray) -> np.ndarray:
    """W [O, C, kh, kw] -> [O, 4C, ceil(kh/2), ceil(kw/2)], channels as SpaceToDepth orders them."""
    o, c, kh, kw = weight.shape
    even = np.pad(weight, ((0, 0), (0, 0), (0, kh % 2), (0, kw % 2)))
    cut = even.reshape(o, c, even.shape[2] // 2, 2, even.shape[3] // 2, 2)
    return cut.transpose(0, 3, 5, 1, 2, 4).reshape(o, 4 * c, cut.shape[2], cut.shape[4])
