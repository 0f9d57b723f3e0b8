"""Exponential moving average of the network in training, which is evaluated in its place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Exponential moving average of parameters and of buffers that are real numbers.

    Statistics of BatchNorm and ranges that follow the data are averaged with the weights they
    belong to; buffers of whole numbers are copied.

    Attributes:
        state: names and averages, as the network's ``state_dict``.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin with a copy of the network.

        Args:
            network: that is trained.
            decay: weight of the old average in each step, above 0 and below 1.
        """
        self.decay = decay
        self.state = copy_state(network)

    def step(self, network: nn.Module, steps: int) -> None:
        """Update the average after an optimizer step: a <- d a + (1 - d) w.

        d is the smaller of ``decay`` and (1 + steps) / (10 + steps): early in training the average
        is over about the last tenth of the steps, so the start does not weigh on it for long.

        Args:
            network: the one this was made of.
            steps: since training began, from 1.
        """
        state = network.state_dict()
        real = [name for name, tensor in state.items() if tensor.is_floating_point()]
        blend = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
        blend([self.state[k] for k in real], [state[k] for k in real], steps)
        for name in state.keys() - real:
            self.state[name].copy_(state[name])

    @contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """Load the averages into the network; restore its own parameters at the end."""
        own = copy_state(network)
        network.load_state_dict(self.state)
        try:
            yield
        finally:
            network.load_state_dict(own)


def copy_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the network's ``state_dict``, which later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
