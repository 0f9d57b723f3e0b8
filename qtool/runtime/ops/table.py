"""Table of operators: ONNX name to torch function, node attributes to keyword arguments.

A function takes the node's inputs by position (None where absent) and its attributes by name. A
parameter that was an attribute in old opsets and is an input now takes both. ``n_outputs`` is the
number of outputs of the node, for functions that take it.
"""

import functools
import inspect
from typing import Any

import onnx_ir as ir

from qtool.runtime.ops import (
    activation,
    attention,
    elementwise,
    index,
    linalg,
    nn,
    norm,
    quantized,
    recurrent,
    reduce,
    resize,
    shape,
)
from qtool.runtime.tensors import Op, from_ir

OPS: dict[str, Op] = {
    **elementwise.TABLE,
    **activation.TABLE,
    **linalg.TABLE,
    **nn.TABLE,
    **norm.TABLE,
    **reduce.TABLE,
    **shape.TABLE,
    **index.TABLE,
    **resize.TABLE,
    **quantized.TABLE,
    **recurrent.TABLE,
    **attention.TABLE,
}

# Meanings that changed: op -> (first opset of the function in OPS, function for models before it).
BEFORE: dict[str, tuple[int, Op]] = {**norm.BEFORE, **resize.BEFORE}

# Inputs that are read as Python numbers and therefore stay on the CPU.
SHAPE_INPUTS: dict[str, frozenset[int]] = {
    "AffineGrid": frozenset({1}),
    "CenterCropPad": frozenset({1}),
    "Clip": frozenset({1, 2}),
    "ConstantOfShape": frozenset({0}),
    "CumProd": frozenset({1}),
    "CumSum": frozenset({1}),
    "Dropout": frozenset({1, 2}),
    "Expand": frozenset({1}),
    "OneHot": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
    **{name: frozenset({1}) for name in reduce.TABLE if name.startswith("Reduce")},
}

ELEMENTWISE = frozenset(elementwise.TABLE)

_NOT_VALUES = {
    ir.AttributeType.GRAPH,
    ir.AttributeType.GRAPHS,
    ir.AttributeType.SPARSE_TENSOR,
    ir.AttributeType.SPARSE_TENSORS,
    ir.AttributeType.TENSORS,
    ir.AttributeType.TYPE_PROTO,
    ir.AttributeType.TYPE_PROTOS,
}


def select(node: ir.Node, opset: int) -> Op | None:
    """Return the function of a node under its model's opset, None where the table has none."""
    if node.domain not in ("", "ai.onnx"):
        return None
    since, older = BEFORE.get(node.op_type, (0, None))
    return older if opset < since else OPS.get(node.op_type)


@functools.cache
def _keywords(function: Op) -> frozenset[str]:
    try:
        names = inspect.signature(function).parameters
    except ValueError:  # a torch builtin: it has no attributes
        return frozenset()
    return frozenset(names)


def _declared(value: ir.Value | None) -> int:
    """Return the ONNX number of the declared type of a value; 0 where none is declared."""
    return 0 if value is None or value.dtype is None else value.dtype.value


def options_of(node: ir.Node, function: Op) -> dict[str, Any] | None:
    """Return the keyword arguments of a node; None if ``function`` lacks one of its attributes."""
    keywords = _keywords(function)
    options: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        if name not in keywords or attribute.is_ref() or attribute.type in _NOT_VALUES:
            return None
        is_tensor = attribute.type == ir.AttributeType.TENSOR
        options[name] = from_ir(attribute.as_tensor()) if is_tensor else attribute.value
    if "n_outputs" in keywords:
        options["n_outputs"] = len(node.outputs)
    if (
        node.op_type == "QuantizeLinear"
        and not options.get("output_dtype")
        and len(node.inputs) > 2
    ):
        options["output_dtype"] = _declared(node.inputs[2])  # int4 codes travel as int8
    if node.op_type == "CastLike":
        options["to"] = _declared(node.inputs[1])
    return options
