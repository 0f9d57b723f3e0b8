"""A simulation as a torch module, for anyone's loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qtool.errors import DataError
from qtool.simulation.fake_quant import Simulation


def by_input(
    inputs: Sequence[str], values: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """What was given by position and by name, by name.

    Raises:
        DataError: an input is missing, unknown or given twice.
    """
    feeds = dict(zip(inputs, values, strict=False))
    wrong = [name for name in named if name in feeds or name not in inputs]
    missing = [name for name in inputs if name not in feeds and name not in named]
    if wrong or missing or len(values) > len(inputs):
        given = f"{len(values)} by position" + (f" and {', '.join(named)}" if named else "")
        raise DataError(f"the network was given {given}; expected {', '.join(inputs)}, each once")
    return {**feeds, **named}


class SimulatedModule(nn.Module):
    """The quantized network; holds no parameters, and what it returns has no gradient."""

    def __init__(
        self, simulation: Simulation, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        """Wrap a simulation.

        Args:
            simulation: what runs.
            inputs, outputs: names, in order.
        """
        super().__init__()
        self.simulation = simulation
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, *values: Any, **named: Any) -> "torch.Tensor | tuple[torch.Tensor, ...]":
        """The one output, or all of them, for inputs by position or by name.

        Raises:
            DataError: an input is missing, unknown or given twice.
        """
        found = self.simulation(by_input(self.inputs, values, named), self.outputs)
        # Tensors of inference mode could not enter a graph of autograd later.
        tensors = tuple(found[name].clone() for name in self.outputs)
        return tensors[0] if len(tensors) == 1 else tensors
