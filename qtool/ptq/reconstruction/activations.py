"""QDrop's activations: learned steps, and elements that stay unrounded at random."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from qtool.qat.quantizers.learned_step import learned_step
from qtool.qat.quantizers.lsq import LSQGradient
from qtool.qat.quantizers.scales import code_limits
from qtool.quant.primitives import QuantParams

T = torch.Tensor

GRADIENT = LSQGradient()


class Drop:
    """The random choice of elements that stay unrounded, drawn anew at every call.

    Attributes:
        probability: that an element stays unrounded.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self.probability = probability
        self._generator = np.random.default_rng(seed)

    def __call__(self, rounded: T, unrounded: T) -> T:
        """Return ``unrounded`` where an element is dropped, else ``rounded``; one shape."""
        if not self.probability:
            return rounded
        # A byte of random bits for each element: several times faster than drawing floats.
        drawn = np.frombuffer(bytearray(self._generator.bytes(rounded.numel())), np.uint8)
        mask = torch.from_numpy(drawn) < round(256 * self.probability)
        return torch.where(mask.view(rounded.shape).to(rounded.device), unrounded, rounded)


class LearnedActivation(nn.Module):
    """Activations on a per-tensor grid with a learned step s0 exp(a) and a fixed zero point.

    The gradient of the step is LSQ's. Its logarithm learns, so that one learning rate fits steps
    of all sizes.

    Attributes:
        log_ratio: a, shape [1].
    """

    start_scale: T

    def __init__(self, params: QuantParams, drop: Drop, learns: bool) -> None:
        """Make the module.

        Args:
            params: per-tensor grid that learning starts from.
            drop: leaves elements unrounded.
            learns: False: the step is fixed.
        """
        super().__init__()
        self.params, self._drop = params, drop
        self.log_ratio = nn.Parameter(torch.zeros(1), requires_grad=learns)
        self.register_buffer("start_scale", torch.tensor([float(params.scale)]))

    @property
    def scale(self) -> T:
        """Current step, shape [1]."""
        return self.start_scale * self.log_ratio.exp()

    def forward(self, x: T) -> T:
        """Return ``x`` rounded to the grid, but for the elements that are dropped."""
        rounded = learned_step(x, self.scale, code_limits(self.params), GRADIENT)
        return self._drop(rounded, x)

    def freeze(self) -> QuantParams:
        """Return the learned grid."""
        scale = self.scale.detach().cpu().numpy().astype(np.float32)
        return replace(self.params, scale=scale.reshape(self.params.scale.shape))
