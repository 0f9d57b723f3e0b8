"""The network in training as a module for anyone's loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qtool.qat.fake_quant_model import QatNetwork
from qtool.quant.plan import QuantPlan
from qtool.simulation.module import by_input


class TrainableModule(nn.Module):
    """The quantized network with weights, scales and BatchNorm as parameters."""

    def __init__(
        self, network: QatNetwork, inputs: tuple[str, ...], finish: Callable[[QuantPlan], Any]
    ) -> None:
        """Wrap a network.

        Args:
            network: what runs.
            inputs: names, in order.
            finish: makes what :meth:`plan` returns of the plan learned.
        """
        super().__init__()
        self.network, self.inputs = network, inputs
        self._finish = finish

    def forward(self, *values: Any, **named: Any) -> "torch.Tensor | tuple[torch.Tensor, ...]":
        """The one output, or all of them, for inputs by position or by name.

        Raises:
            DataError: an input is missing, unknown or given twice.
        """
        found = self.network(by_input(self.inputs, values, named))
        tensors = tuple(found[name] for name in self.network.outputs)
        return tensors[0] if len(tensors) == 1 else tensors

    def project(self) -> None:
        """Call it after every optimizer step: learned scales stay positive."""
        self.network.project()

    def scales(self) -> list[nn.Parameter]:
        """Parameters of grids, which learn at a hundredth of the weights' rate or less."""
        grids = (self.network.weight_grids, self.network.activation_grids)
        return [p for part in grids for p in part.parameters()]

    def plan(self) -> Any:
        """What was learned so far, as a plan for ``qtool.emit`` and ``qtool.simulate``."""
        return self._finish(self.network.freeze())
