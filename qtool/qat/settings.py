"""What training is asked to do, and what it tells of an epoch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtool.qat.custom_loss import CustomLoss


@dataclass(frozen=True)
class Oscillation:
    """What to do about oscillating weights; :mod:`qtool.qat.oscillation` counts them.

    Attributes:
        dampen: last factor on the squared distance of weights to their rounded values; 0: none.
        freeze: last frequency above which a weight is fixed; None: none is.
        momentum: of the frequency, weight of the newest step.
    """

    dampen: float = 0.0
    freeze: float | None = None
    momentum: float = 0.01


@dataclass(frozen=True)
class Pixels:
    """How pixels p between 0 and 1 become inputs: p * scale + offset.

    Attributes:
        scale, offset: one number for each channel, or one for all.
        luma: the channels' shares of a pixel's gray; they sum to 1.
    """

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    luma: tuple[float, ...] = (1.0,)


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
    clip: float | None = None  # 0: none; None: as the network needs it
    precision: str = "float32"  # of products in training; or bfloat16
    label_smoothing: float = 0.0
    loss: "CustomLoss | None" = None  # cross entropy
    teacher: float = 1.0
    temperature: float = 1.0
    blocks: float = 0.0
    crop: int = 0
    flip: bool = False
    fill: tuple[float, ...] = (0.0,)
    colour: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    pixels: Pixels = Pixels()
    seed: int = 0
    oscillation: Oscillation | None = None  # not even counted
    ema: float | None = None  # what the average judged keeps at every step


@dataclass(frozen=True)
class Epoch:
    """One line of the history.

    Attributes:
        number: from 1; 0 is the plan before training.
        loss: mean over the epoch's batches; None before training.
        score: on the validation samples: top-1 in % with labels, else minus the loss against the
            teacher; larger is better.
        oscillating, frozen: shares of the weights of at most 4 bits as it ended, 0 to 1; None where
            they are not asked for, or before training.
    """

    number: int
    loss: float | None
    score: float
    seconds: float
    oscillating: float | None = None
    frozen: float | None = None


def best_of(history: list[Epoch]) -> int:
    """Number of the epoch with the highest score, the last of equals."""
    return max(history, key=lambda epoch: (epoch.score, epoch.number)).number
