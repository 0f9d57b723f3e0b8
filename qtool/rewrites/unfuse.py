"""Decomposition of fused operators in files that ONNX Runtime optimized."""

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from qtool.graph.edit import add_node, drop, replace_value
from qtool.graph.queries import attribute
from qtool.rewrites.rewrite import IsInteger

# Activation name -> the operator's attributes, in the order of ``activation_params``.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
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
            parameters = _parameters(node, activation)
            y = add_node(node, activation, [y], parameters, f"{node.name}/{activation}")
        replace_value(node.outputs[0], y)
        drop(node)
        done += 1
    if done:
        RemoveUnusedOpsetsPass()(model)
    return done


def _parameters(node: ir.Node, activation: str) -> dict[str, Any]:
    """Return the attributes of the activation; FusedConv lists them, FusedGemm names them."""
    names = ACTIVATIONS[activation]
    values = attribute(node, "activation_params") or tuple(
        attribute(node, f"activation_{name}") for name in names
    )
    return {k: float(v) for k, v in zip(names, values, strict=False) if v is not None}
