"""Where blocks of a network end, and how far they are there from the float network's."""

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
    """Names of the values that end a block, in graph order.

    These are residual sums (Add of two values that are no constants), behind the activation that
    alone reads them; in a network without any, the outputs of all layers with weights but the last.

    Args:
        model: the rewritten graph.
        plan: its sites; layers that stay float end no block.
    """
    found = []
    for node in model.graph:
        terms = node.inputs if node.op_type == "Add" else ()
        if terms and all(is_float(v) and not is_constant(v) for v in terms):
            found.append(_activated(node.outputs[0]))
    if not found:
        values = by_name(model.graph)
        layers = [site for site in plan.sites.values() if site.weight is not None]
        found = [_activated(values[site.output]) for site in layers[:-1]]
    return tuple(dict.fromkeys(str(value.name) for value in found))


def _activated(value: ir.Value) -> ir.Value:
    """What the activation makes of a value that nothing else reads; else the value itself."""
    reader = sole_reader(value)
    if reader is None or reader.op_type not in ACTIVATIONS:
        return value
    return reader.outputs[0]


def block_error(found: Mapping[str, T], taught: Mapping[str, T], names: Sequence[str]) -> T:
    """Mean over the blocks of their squared error, each in units of its float output's mean square.

    Args:
        found: values of the network that learns, by name.
        taught: those of the float network, of the same shapes.
        names: the blocks.

    Returns:
        Rank 0; 0 where both agree, 1 for outputs of 0.
    """
    wanted = [taught[name].float() for name in names]
    powers = torch.stack([want.square().mean() for want in wanted])
    powers = distributed.mean_over_rows(powers, len(wanted[0]))
    powers = powers.clamp(min=torch.finfo(torch.float32).tiny)
    errors = [
        (found[name].float() - want).square().mean()
        for name, want in zip(names, wanted, strict=True)
    ]
    return (torch.stack(errors) / powers).mean()
