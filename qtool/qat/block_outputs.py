"""Outputs of a network's blocks, and their error against the float network's."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch

from qtool.graph.queries import by_name, is_constant, is_float, sole_reader
from qtool.qat import distributed
from qtool.quant.plan import QuantPlan

T = torch.Tensor

ACTIVATIONS = (
    *("Relu", "Clip", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Gelu"),
    *("Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Mish"),
)


def block_outputs(model: ir.Model, plan: QuantPlan) -> tuple[str, ...]:
    """List the names of the blocks' outputs, in graph order.

    These are residual sums (Add of two values that are no constants), behind the activation that
    is their only reader; in a network without any, the outputs of all layers with weights but the
    last.

    Args:
        model: the rewritten graph.
        plan: its sites; float layers have no block output.
    """
    outputs = []
    for node in model.graph:
        terms = node.inputs if node.op_type == "Add" else ()
        if terms and all(is_float(v) and not is_constant(v) for v in terms):
            outputs.append(_activated(node.outputs[0]))
    if not outputs:
        values = by_name(model.graph)
        layers = [site for site in plan.sites.values() if site.weight is not None]
        outputs = [_activated(values[site.output]) for site in layers[:-1]]
    return tuple(dict.fromkeys(str(value.name) for value in outputs))


def _activated(value: ir.Value) -> ir.Value:
    """Return the output of the activation that is the value's only reader, else the value."""
    reader = sole_reader(value)
    if reader is None or reader.op_type not in ACTIVATIONS:
        return value
    return reader.outputs[0]


def block_error(outputs: Mapping[str, T], teacher: Mapping[str, T], names: Sequence[str]) -> T:
    """Compute the mean over the blocks of mean((y - t)^2) / mean(t^2), t the float output.

    The mean square of t is over the rows of all processes.

    Args:
        outputs: values of the network in training, by name.
        teacher: those of the float network, of the same shapes.
        names: the blocks.

    Returns:
        Rank 0; 0 where both are equal, 1 for outputs of 0.
    """
    targets = [teacher[name].float() for name in names]
    powers = torch.stack([target.square().mean() for target in targets])
    powers = distributed.mean_over_rows(powers, len(targets[0]))
    powers = powers.clamp(min=torch.finfo(torch.float32).tiny)
    errors = [
        (outputs[name].float() - target).square().mean()
        for name, target in zip(names, targets, strict=True)
    ]
    return (torch.stack(errors) / powers).mean()
