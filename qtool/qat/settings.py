"""Settings of a training run, the history it returns, and the reasons for refusing a grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from qtool.qat.custom_loss import CustomLoss

# Ends of messages that refuse to train a grid: of a recipe before any work, and of a plan by
# QatNetwork.
UNTRAINABLE_DYNAMIC = "grids found at run time cannot be trained; use activations: 8"


@dataclass(frozen=True)
class Oscillation:
    """Treatment of oscillating weights; :mod:`qtool.qat.oscillation` counts them.

    Attributes:
        dampen: factor at the end of training on the squared distance of weights to their rounded
            values; 0: none.
        freeze: frequency at the end of training above which a weight is frozen; None: none is.
        momentum: weight of the newest step in the moving average of the frequency.
        transitions: share of the codes that shall change in the first steps; None: the rate of
            weights follows the schedule.
    """

    dampen: float = 0.0
    freeze: float | None = None
    momentum: float = 0.01
    transitions: float | None = None


@dataclass(frozen=True)
class Pixels:
    """Conversion of pixels p between 0 and 1 to inputs: p * scale + offset.

    Attributes:
        scale, offset: one number for each channel, or one for all.
        luma: weights of the channels in a pixel's gray; they sum to 1.
    """

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    luma: tuple[float, ...] = (1.0,)


class GradualMasks(Protocol):
    """Masks of pruned weights that grow while the network trains."""

    @property
    def epochs(self) -> int:
        """Epochs until the final masks; training is at least as long."""

    def __call__(self, weights: Mapping[str, np.ndarray], share: float) -> Mapping[str, np.ndarray]:
        """Return the masks by name, False where a weight becomes 0.

        Args:
            weights: by name, as the file would hold them, but for rounding.
            share: of the epochs that are done, 0 to 1.
        """


@dataclass(frozen=True)
class Settings:
    """Options of a training run; the recipe's ``qat`` section describes each."""

    epochs: int
    batch: int = 128
    fixed: bool = False  # the network takes no other batch size
    probabilities: bool = False  # the network ends in a Softmax
    optimizer: str = "sgd"
    lr: float = 0.01
    scale_lr: float | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.0
    schedule: str = "cosine"  # of the rates; or exponential
    clip: float | None = None  # largest norm of the gradient; 0: any; None: default_clip
    extra_bits: int = 0  # of grids of less than 8 bits, when training starts
    precision: str = "float32"  # of matrix products in training; or bfloat16
    label_smoothing: float = 0.0
    loss: "CustomLoss | None" = None  # None: cross entropy
    teacher: float = 1.0  # weight of the distance to the float network; labels have the rest
    temperature: float = 1.0
    blocks: float = 0.0  # weight of the error of block outputs
    crop: int = 0
    flip: bool = False
    fill: tuple[float, ...] = (0.0,)
    colour: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    pixels: Pixels = Pixels()
    seed: int = 0
    oscillation: Oscillation | None = None  # None: oscillations are not counted
    ema: float | None = None  # decay of the moving average of the network
    pruning: GradualMasks | None = None  # None: masks stay as the plan has them
    patience: int | None = None  # epochs without a better one after which training ends


@dataclass(frozen=True)
class RunFiles:
    """Files that training writes.

    Attributes:
        checkpoint: state after the last epoch; a run goes on from it if it is there.
        tensorboard: folder for TensorBoard's event files; None: none are written.
    """

    checkpoint: Path
    tensorboard: Path | None = None


@dataclass(frozen=True)
class Epoch:
    """One epoch of the history.

    Attributes:
        number: from 1; 0 is the plan before training.
        loss: mean over the epoch's batches; None before training.
        score: on the validation samples: top-1 in % with labels, else minus the loss against the
            teacher; larger is better.
        seconds: duration of training and validation.
        oscillating, frozen: shares of the weights of at most 4 bits at its end, 0 to 1; None where
            they are not counted, or before training.
        sparsity: share of the weights with a mask that is pruned at its end; None where none has.
    """

    number: int
    loss: float | None
    score: float
    seconds: float
    oscillating: float | None = None
    frozen: float | None = None
    sparsity: float | None = None


def best_epoch(history: list[Epoch]) -> int:
    """Return the number of the epoch with the highest score, the last of equals.

    Where masks of pruned weights grow, only the epochs with the highest sparsity count.
    """
    return max(history, key=lambda e: (e.sparsity or 0.0, e.score, e.number)).number
