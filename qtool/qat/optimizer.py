"""The optimizer: groups of parameters, their learning rates and the default gradient clipping."""

import math
from collections.abc import Callable
from typing import Any

import torch

from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers.base import learned_parameters
from qtool.qat.settings import Settings

# An exponential rate ends at this share of the first: from 1.5e-3 to 1e-6.
LAST_RATE = 1 / 1500
# Share of the peak rate after a share of training.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "exponential": lambda done: LAST_RATE**done,
}


def build_optimizer(network: QatNetwork, settings: Settings) -> torch.optim.Optimizer:
    """Return an optimizer with four groups: weights; biases and norms; scales; decaying scales.

    Weights and the grid modules that ask for it (PACT) take weight decay, all others none.
    Parameters of grid modules that learn at the rate of the weights (centroids) are in the second.

    Args:
        network: that is trained.
        settings: with optimizer, rate and decay.
    """
    grids: list[Any] = [*network.weight_grids.values(), *network.activation_grids.values()]
    decaying = [p for grid in grids if grid.decays for p in learned_parameters(grid, False)]
    scales = [p for grid in grids if not grid.decays for p in learned_parameters(grid, False)]
    others = [*network.biases.parameters(), *network.norms.parameters()]
    others += [p for grid in grids for p in learned_parameters(grid, True)]
    groups: list[dict[str, Any]] = [
        {"params": list(network.weights.parameters()), "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": scales, "weight_decay": 0.0},
        {"params": decaying, "weight_decay": settings.weight_decay},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)


def default_clip(network: QatNetwork) -> float:
    """Return the largest norm of the gradient where the settings have none; 0: any.

    BatchNorm on statistics of the batch makes a layer's output independent of the size of its
    weights. Without it, one step at a rate that suits such a network can be far too large: the loss
    of a folded resnet20 at rate 0.01 rises from 0.1 to 30 in four steps, and stays at chance.
    """
    return 0.0 if network.live_norms() else 1.0


def rates(settings: Settings, epoch: float) -> tuple[float, float, float, float]:
    """Compute the learning rates of the four groups: a linear warm-up, then the schedule.

    Args:
        settings: with rates, epochs and warm-up.
        epoch: epochs done, with fractions.
    """
    if epoch < settings.warmup:
        share = (epoch + 1e-3) / settings.warmup  # 1e-3: the first step learns too
    else:
        rest = max(settings.epochs - settings.warmup, 1e-9)
        done = min((epoch - settings.warmup) / rest, 1.0)
        share = SCHEDULES[settings.schedule](done)
    # A hundredth: scales are small numbers, and every one of them moves a whole grid.
    scale = settings.lr / 100 if settings.scale_lr is None else settings.scale_lr
    return settings.lr * share, settings.lr * share, scale * share, scale * share
