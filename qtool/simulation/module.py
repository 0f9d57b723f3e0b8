"""Torch module around a simulation, for evaluation loops of the caller."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qtool.errors import DataError
from qtool.simulation.fake_quant import Simulation


def bind_inputs(
    inputs: Sequence[str], values: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """Bind the arguments of a call to the names of inputs, as Python does.

    Args:
        inputs: names, in order.
        values: arguments by position.
        named: arguments by name.

    Raises:
        DataError: an input is missing, unknown or passed twice.
    """
    feeds = dict(zip(inputs, values, strict=False))
    wrong = [name for name in named if name in feeds or name not in inputs]
    missing = [name for name in inputs if name not in feeds and name not in named]
    if wrong or missing or len(values) > len(inputs):
        passed = f"{len(values)} by position" + (f" and {', '.join(named)}" if named else "")
        raise DataError(
            f"found {passed} as inputs of the network, expected {', '.join(inputs)}, each once; "
            "pass each by position or by name"
        )
    return {**feeds, **named}


class SimulatedModule(nn.Module):
    """Quantized network as a torch module without parameters; its outputs have no gradient."""

    def __init__(
        self, simulation: Simulation, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        """Wrap a simulation.

        Args:
            simulation: runs the network.
            inputs: names, in order.
            outputs: names, in order.
        """
        super().__init__()
        self.simulation = simulation
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, *values: Any, **named: Any) -> "torch.Tensor | tuple[torch.Tensor, ...]":
        """Compute the output, or a tuple of all of them.

        Args:
            values: inputs by position.
            named: inputs by name.

        Raises:
            DataError: an input is missing, unknown or passed twice.
        """
        results = self.simulation(bind_inputs(self.inputs, values, named), self.outputs)
        # A clone outside inference mode may enter an autograd graph later.
        tensors = tuple(results[name].clone() for name in self.outputs)
        return tensors[0] if len(tensors) == 1 else tensors
