"""What training is asked to do, and what it tells of an epoch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtool.qat.own_loss import OwnLoss


@dataclass(frozen=True)
class Settings:
    """How to train; the recipe's ``qat`` section says what each means."""

    epochs: int
    batch: int = 128
    fixed: bool = False  # the network takes no other batch
    probabilities: bool = False  # the network ends in a Softmax
    optimizer: str = "sgd"
    lr: float = 0.01
    scale_lr: float | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.0
    clip: float | None = None
    label_smoothing: float = 0.0
    loss: "OwnLoss | None" = None  # cross entropy
    teacher: float = 1.0
    temperature: float = 1.0
    crop: int = 0
    flip: bool = False
    fill: tuple[float, ...] = (0.0,)
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One line of the history.

    Attributes:
        number: from 1; 0 is the plan before training.
        loss: mean over the epoch's batches; None before training.
        score: on the validation samples: top-1 in % with labels, else minus the loss against the
            teacher; larger is better.
    """

    number: int
    loss: float | None
    score: float
    seconds: float


def best_of(history: list[Epoch]) -> int:
    """Number of the epoch with the highest score, the last of equals."""
    return max(history, key=lambda epoch: (epoch.score, epoch.number)).number
