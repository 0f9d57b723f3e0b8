"""Files that ONNX Runtime optimized: fused operators back into standard ones."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from qtool.graph.edit import add_node, drop, take_over
from qtool.graph.queries import attribute

# Activation name -> the attributes its parameters stand for, in order.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
PLAIN = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
OWN = {"activation", "activation_params", "activation_alpha", "activation_beta"}


def unfuse_microsoft(model: ir.Model, quantized: Callable[[ir.Node], bool]) -> int:
    """com.microsoft FusedConv and FusedGemm become Conv or Gemm, Add and the activation.

    Fused files run on one runtime's float kernels; unfused, their layers quantize like any other.
    """
    done = 0
    for node in list(model.graph):
        activation = attribute(node, "activation", "")
        known = not activation or activation in ACTIVATIONS
        if node.domain != "com.microsoft" or node.op_type not in PLAIN or not known:
            continue
        attributes = {a.name: a.value for a in node.attributes.values() if a.name not in OWN}
        inputs = list(node.inputs)
        added = inputs.pop(3) if node.op_type == "FusedConv" and len(inputs) > 3 else None
        y = add_node(node, PLAIN[node.op_type], inputs, attributes, f"{node.name}/plain")
        if added is not None:
            y = add_node(node, "Add", [y, added], name=f"{node.name}/Add")
        if activation:
            parameters = _parameters(node, activation)
            y = add_node(node, activation, [y], parameters, f"{node.name}/{activation}")
        take_over(node.outputs[0], y)
        drop(node)
        done += 1
    if done:
        RemoveUnusedOpsetsPass()(model)
    return done


def _parameters(node: ir.Node, activation: str) -> dict[str, Any]:
    names = ACTIVATIONS[activation]
    given = attribute(node, "activation_params") or tuple(
        attribute(node, f"activation_{name}") for name in names
    )
    return {k: float(v) for k, v in zip(names, given, strict=False) if v is not None}
