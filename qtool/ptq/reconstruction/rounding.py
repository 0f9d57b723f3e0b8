"""Roundings that learn: AdaRound's choice between two codes, and codes that move freely.

Every module holds the weights of one layer in units of codes, so that one learning rate fits all
layers, and the logarithm of a gain on its scales.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from qtool.qat.quantizers.ste import straight_through
from qtool.quant.primitives import SMALLEST_SCALE, QuantParams, align

T = torch.Tensor

# Limits of the rectified sigmoid; h(V) reaches 0 and 1 at V = -+2.4.
ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(v: T) -> T:
    """Return h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), zeta = 1.1, gamma = -0.1.

    Source: Nagel et al. 2020, eq. 23, arXiv:2004.10568.
    """
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: T) -> T:
    """Return V with h(V) = h: -ln((zeta - gamma) / (h - gamma) - 1), for h from 0 to 1."""
    return -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1)


def rounding_regularizer(h: T, beta: float) -> T:
    """Return the sum of 1 - |2 h - 1|^beta, which is 0 where every h is 0 or 1.

    Source: Nagel et al. 2020, eq. 24, arXiv:2004.10568.
    """
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


@dataclass(frozen=True)
class Annealing:
    """Schedule of the regularizer's exponent: none at first, then from flat to steep.

    Attributes:
        start, end: exponent after the warm-up and at the end; linear in between.
        warmup: share of the iterations without the regularizer.
    """

    start: float = 20.0
    end: float = 2.0
    warmup: float = 0.2

    def beta(self, share: float) -> float | None:
        """Return the exponent at a share of all iterations, 0 to 1; None in the warm-up."""
        if share < self.warmup:
            return None
        rest = (share - self.warmup) / (1 - self.warmup)
        return self.start + (self.end - self.start) * rest


class LearnedWeight(nn.Module, ABC):
    """Weights of one layer on a symmetric grid, in units of codes; base of the roundings.

    Attributes:
        v: learned, shape of the weights.
        log_gain: learned logarithm of the factor on the scales, in their shape for broadcasting.
        mask: 0 for pruned weights, else 1, shape of the weights; None: nothing is pruned.
    """

    v: nn.Parameter
    start_scale: T
    mask: T | None = None
    anneals: ClassVar[bool] = True
    """The rate falls to 0: nothing else ends the learning."""

    def __init__(self, params: QuantParams, codes: T) -> None:
        """Make the module.

        Args:
            params: grid that learning starts from.
            codes: of the plan, float32.
        """
        super().__init__()
        self.params = params
        self.register_buffer("start_scale", align(params, codes)[0])
        self.log_gain = nn.Parameter(torch.zeros_like(self.start_scale))
        self.log_gain.requires_grad_(params.spec.scale_kind == "float")

    @property
    def scale(self) -> T:
        """Current scale, for broadcasting against the weights."""
        return self.start_scale * self.log_gain.exp()

    def forward(self) -> T:
        """Return the weights that the block computes with."""
        return self._masked(self.levels()) * self.scale

    def _masked(self, levels: T) -> T:
        """Return levels clipped to the grid, and 0 where weights are pruned."""
        clipped = levels.clamp(self.params.spec.qmin, self.params.spec.qmax)
        return clipped if self.mask is None else clipped * self.mask

    @abstractmethod
    def levels(self) -> T:
        """Return the weights in units of codes while they learn, not clipped."""

    @abstractmethod
    def hard_levels(self) -> T:
        """Return whole numbers, not clipped."""

    def regularizer(self, beta: float) -> T:
        """Return what draws the levels to whole numbers; 0 where they are whole already."""
        return self.v.new_zeros(())

    @torch.no_grad()
    def freeze(self) -> tuple[np.ndarray, QuantParams]:
        """Return the codes and the grid."""
        codes = self._masked(self.hard_levels()).cpu().numpy()
        scale = self.scale.clamp(min=SMALLEST_SCALE).cpu().numpy().astype(np.float32)
        grid = replace(self.params, scale=scale.reshape(self.params.scale.shape))
        return codes.astype(self.params.container), grid


class SoftRounding(LearnedWeight):
    """AdaRound: every weight learns which of two neighbouring codes it takes.

    ::

        w = s clip(base + h(V), qmin, qmax),   hard: base + 1[V >= 0]

    The two codes are the plan's own and its neighbour towards the float weight.
    """

    base: T
    anneals: ClassVar[bool] = False

    def __init__(self, exact: T, codes: T, params: QuantParams, warm: float) -> None:
        """Start at ``h(V) = (1 - warm) (exact - base) + warm (codes - base)``.

        Args:
            exact: float weights in units of codes.
            codes: of the plan, whole numbers.
            params: grid of the plan.
            warm: 0 starts at the float weights, 1 at the codes.
        """
        super().__init__(params, codes)
        base = torch.where(exact < codes, codes - 1, codes)
        self.register_buffer("base", base)
        share = (1 - warm) * (exact - base).clamp(0, 1) + warm * (codes - base)
        self.v = nn.Parameter(inverse_rectified_sigmoid(share))

    def levels(self) -> T:
        """Return base + h(V)."""
        return self.base + rectified_sigmoid(self.v)

    def hard_levels(self) -> T:
        """Return base + 1[V >= 0]."""
        return self.base + (self.v >= 0).float()

    def regularizer(self, beta: float) -> T:
        """Return the sum of 1 - |2 h(V) - 1|^beta."""
        return rounding_regularizer(rectified_sigmoid(self.v), beta)


class StraightThroughRounding(LearnedWeight):
    """AdaQuant: weights move by any number of codes; gradients pass the rounding.

    ``w = s clip(round(V), qmin, qmax)``

    Source: Hubara et al. 2020, sec. 3, arXiv:2006.10518.
    """

    def __init__(self, exact: T, codes: T, params: QuantParams, warm: float) -> None:
        """Start at the codes, up to ``(1 - warm) / 2`` away from them towards the float weights.

        Args:
            exact: float weights in units of codes.
            codes: of the plan, whole numbers.
            params: grid of the plan.
            warm: 1 starts at the codes.
        """
        super().__init__(params, codes)
        # Less than half a step, so that learning starts with the plan's own codes.
        self.v = nn.Parameter(codes + (1 - warm) * (exact - codes).clamp(-0.499, 0.499))

    def levels(self) -> T:
        """Return round(V), with the gradient of the identity."""
        spec = self.params.spec
        return straight_through(self.v.clamp(spec.qmin, spec.qmax))

    def hard_levels(self) -> T:
        """Return round(V)."""
        return self.v.round()


ROUNDINGS: dict[str, type[SoftRounding] | type[StraightThroughRounding]] = {
    "soft": SoftRounding,
    "straight_through": StraightThroughRounding,
}
"""Names that the option ``rounding`` of a step may have."""
