"""The network in training as a torch module for a training loop of the user."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers.base import learned_parameters, lower_bits
from qtool.quant.plan import QuantPlan
from qtool.simulation.module import bind_inputs


class TrainableModule(nn.Module):
    """The quantized network with weights, scales and BatchNorm as parameters."""

    def __init__(
        self, network: QatNetwork, inputs: tuple[str, ...], finish: Callable[[QuantPlan], Any]
    ) -> None:
        """Wrap a network.

        Args:
            network: what runs.
            inputs: names, in order.
            finish: converts the learned plan to the result of :meth:`plan`.
        """
        super().__init__()
        self.network, self.inputs = network, inputs
        self._finish = finish

    def forward(self, *values: Any, **named: Any) -> "torch.Tensor | tuple[torch.Tensor, ...]":
        """Compute the one output, or a tuple of all, for inputs by position or by name.

        Args:
            *values: inputs by position, [N, ...].
            **named: inputs by name.

        Raises:
            DataError: an input is missing, unknown or passed twice.
        """
        outputs = self.network(bind_inputs(self.inputs, values, named))
        tensors = tuple(outputs[name] for name in self.network.outputs)
        return tensors[0] if len(tensors) == 1 else tensors

    def project(self) -> None:
        """Clamp learned scales to positive values; call after every optimizer step."""
        self.network.project()

    def advance(self, share: float, extra_bits: int = 0) -> None:
        """Set how far training is, for stages (nice, extra bits); call before every step.

        Args:
            share: of training that is done, 0 to 1.
            extra_bits: gradual lowering, as `qat.extra_bits` of a recipe.
        """
        self.network.advance(share)
        lower_bits(self.network, extra_bits, share)

    def penalty(self) -> torch.Tensor | None:
        """Return the term that the method adds to the loss (regularization), or None."""
        return self.network.penalty()

    def scales(self) -> list[nn.Parameter]:
        """List the scales of grids, which learn at 1/100 of the weights' rate or less."""
        network = self.network
        grids: list[Any] = [*network.weight_grids.values(), *network.activation_grids.values()]
        return [p for grid in grids for p in learned_parameters(grid, at_weight_rate=False)]

    def plan(self) -> Any:
        """Return the learned plan, for ``qtool.emit`` and ``qtool.simulate``; changes nothing."""
        return self._finish(self.network.freeze())
