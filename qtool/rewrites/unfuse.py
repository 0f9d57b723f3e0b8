"""Decomposition of fused operators in files that ONNX Runtime optimized."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from qtool.graph.edit import add_constant, add_node, drop, replace_value
from qtool.graph.queries import attribute
from qtool.rewrites.rewrite import IsInteger

# Activation name -> the operator's parameters, in the order of ``activation_params``.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "HardSwish": (),
    "Clip": ("min", "max"),
}
# Activation name -> the oldest opset of the default domain that has it.
SINCE = {"HardSwish": 14}
UNFUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
FUSION_ATTRIBUTES = {"activation", "activation_params", "activation_alpha", "activation_beta"}


def unfuse_microsoft(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace com.microsoft FusedConv and FusedGemm by Conv or Gemm, Add and the activation.

    The fused operators exist in ONNX Runtime's float kernels only; the standard ones can be
    quantized like those of any other model.
    """
    done = 0
    for node in list(model.graph):
        activation = attribute(node, "activation", "")
        supported = not activation or activation in ACTIVATIONS
        supported = supported and SINCE.get(activation, 1) <= model.opset_imports.get("", 1)
        if node.domain != "com.microsoft" or node.op_type not in UNFUSED or not supported:
            continue
        attributes = {
            a.name: a.value for a in node.attributes.values() if a.name not in FUSION_ATTRIBUTES
        }
        inputs = list(node.inputs)
        # FusedConv's fourth input is added to the result before the activation.
        added = inputs.pop(3) if node.op_type == "FusedConv" and len(inputs) > 3 else None
        y = add_node(node, UNFUSED[node.op_type], inputs, attributes, f"{node.name}/plain")
        if added is not None:
            y = add_node(node, "Add", [y, added], name=f"{node.name}/Add")
        if activation:
            y = _activate(node, activation, y)
        replace_value(node.outputs[0], y)
        drop(node)
        done += 1
    if done:
        RemoveUnusedOpsetsPass()(model)
    return done


def _activate(node: ir.Node, activation: str, x: ir.Value) -> ir.Value:
    """Add the activation of a fused node behind ``x``; return its output."""
    parameters, name = _parameters(node, activation), f"{node.name}/{activation}"
    if activation != "Clip":
        return add_node(node, activation, [x], parameters, name)
    graph = node.graph
    if graph is None:
        raise AssertionError(f"{node.name} belongs to no graph")
    limits = [_limit(graph, f"{name}/{key}", parameters, key) for key in ACTIVATIONS["Clip"]]
    return add_node(node, "Clip", [x, *limits], {}, name)


def _limit(
    graph: ir.Graph, name: str, parameters: Mapping[str, float], key: str
) -> ir.Value | None:
    """Return a limit of a Clip as the initializer that it is from opset 11 on."""
    if key not in parameters:
        return None
    return add_constant(graph, name, np.array(parameters[key], np.float32))


def _parameters(node: ir.Node, activation: str) -> dict[str, Any]:
    """Return the attributes of the activation; FusedConv lists them, FusedGemm names them."""
    names = ACTIVATIONS[activation]
    values = attribute(node, "activation_params") or tuple(
        attribute(node, f"activation_{name}") for name in names
    )
    return {k: float(v) for k, v in zip(names, values, strict=False) if v is not None}
