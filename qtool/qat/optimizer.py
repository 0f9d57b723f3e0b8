"""The optimizer: which parameters learn how fast."""

import math
from typing import Any

import torch

from qtool.qat.fake_quant_model import LiveNorm, QatNetwork
from qtool.qat.settings import Settings


def build_optimizer(network: QatNetwork, settings: Settings) -> torch.optim.Optimizer:
    """Weights decay; biases, norms and scales do not, but for the levels that say so (PACT)."""
    grids = [*network.weight_grids.values(), *network.activation_grids.values()]
    decaying = [p for g in grids if getattr(g, "decays", False) for p in g.parameters()]
    scales = [p for g in grids if not getattr(g, "decays", False) for p in g.parameters()]
    others = [*network.biases.parameters(), *network.norms.parameters()]
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
    """Largest norm of the gradient where nobody says one; 0: any.

    BatchNorm on statistics of the batch makes a layer's output independent of the size of its
    weights. Without it, one step at a rate that suits such a network can throw it far away: the
    loss of a folded resnet20 at rate 0.01 rises from 0.1 to 30 in four steps, and stays at chance.
    """
    live = any(isinstance(m, LiveNorm) and m.live for m in network.modules())
    return 0.0 if live else 1.0


def rates(settings: Settings, epoch: float) -> tuple[float, float, float, float]:
    """Learning rates of the four groups of parameters: a linear warm-up, then half a cosine."""
    if epoch < settings.warmup:
        share = (epoch + 1e-3) / settings.warmup
    else:
        rest = max(settings.epochs - settings.warmup, 1e-9)
        share = 0.5 * (1 + math.cos(math.pi * min((epoch - settings.warmup) / rest, 1.0)))
    scale = settings.lr / 100 if settings.scale_lr is None else settings.scale_lr
    return settings.lr * share, settings.lr * share, scale * share, scale * share
