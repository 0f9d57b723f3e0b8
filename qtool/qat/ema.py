"""The moving average of what a network learned, which is judged and kept in its place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Exponential moving average of parameters and of buffers that are real numbers.

    Statistics of BatchNorm and ranges that follow the data are averaged with the weights they
    belong to; buffers that count are taken as they are.

    Attributes:
        state: names and averages, as the network's ``state_dict``.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin with the network as it is.

        Args:
            network: what learns.
            decay: what each step keeps of the average, above 0 and below 1.
        """
        self.decay = decay
        self.state = copied(network)

    def step(self, network: nn.Module, steps: int) -> None:
        """Take in the network after an optimizer step.

        Until ``decay`` is reached, (1 + steps) / (10 + steps) is kept: the start is forgotten soon,
        and the average is over about the last tenth of the steps.

        Args:
            network: the one this was made of.
            steps: taken since training began, from 1.
        """
        now = network.state_dict()
        real = [name for name, tensor in now.items() if tensor.is_floating_point()]
        blend = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
        blend([self.state[k] for k in real], [now[k] for k in real], steps)
        for name in now.keys() - real:
            self.state[name].copy_(now[name])

    @contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """The network has the averages within, and its own parameters again behind."""
        own = copied(network)
        network.load_state_dict(self.state)
        try:
            yield
        finally:
            network.load_state_dict(own)


def copied(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's ``state_dict`` as it is now, which later steps leave alone."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
