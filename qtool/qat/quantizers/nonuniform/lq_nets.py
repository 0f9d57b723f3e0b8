"""LQ-Nets: levels are the sums of a few learned numbers with either sign."""

import itertools
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from qtool.qat.quantizers.base import CodebookBase, WeightModule, ZeroLevel
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import (
    broadcast_scale,
    from_scale_rows,
    per_scale,
    row_magnitude,
    scale_rows,
)
from qtool.quant.primitives import SMALLEST_SCALE, QuantParams
from qtool.weights.grouping import counted_positions

T = torch.Tensor

TOP_LEVEL = 127  # of the int8 code book: the sum of all numbers of the basis
# Iterations before training; the largest level then starts at so many mean magnitudes.
START_ITERATIONS, START_REACH = 20, 2.5
# Added to the diagonal of B B^T, which is singular where too few levels are used.
RIDGE = 1e-6


@dataclass(frozen=True)
class LQNets(NarrowWeightQuantizer):
    """w = u sum of v_j b_j, b_j = -1 or 1: the nearest level, with a basis v of k numbers.

    v comes from the weights, not from gradients (QEM): b = nearest level, then v = (B B^T)^-1 B w,
    once at every training step, of which a moving average keeps 0.9. v belongs to a layer, u to a
    channel. dL/dw is that of the rounded weight. Levels of the file are 127 / sum v of the real
    ones, rounded; training computes with these. Activations learn as in lsq.

    Source: Zhang et al. 2018, "LQ-Nets", sec. 3, arXiv:1807.10029. Departures: u times one basis of
        the layer, where the paper has a basis for each channel, which no code book holds; levels
        of activations are evenly spaced, as kernels round them.
    """

    starts_from_codes: ClassVar[bool] = False
    restricts_scales: ClassVar[bool] = False
    scheme: ClassVar[str] = "kmeans"
    reads_scheme: ClassVar[bool] = False
    trains_binary: ClassVar[bool] = True

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return LQNetsWeight(params, weight)


def all_signs(count: int) -> T:
    """Return all rows of ``count`` signs, float [2^count, count]."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=count)))


def nearest_signs(x: T, basis: T) -> T:
    """Return the signs b whose level sum v_j b_j is nearest to each number.

    Args:
        x: any shape.
        basis: v, [k].

    Returns:
        float [*x.shape, k].
    """
    signs = all_signs(len(basis)).to(basis)
    levels, order = (signs @ basis).sort()
    index = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2, right=True)
    return signs[order[index]]


def fitted_basis(x: T, signs: T, mass: T) -> T:
    """Return v of smallest squared error for given signs: (B B^T)^-1 B x, weighted, [k].

    Args:
        x: [N].
        signs: [N, k].
        mass: weight of each number in the error, [N].
    """
    weighted = signs * mass[:, None]
    gram = signs.T @ weighted
    gram = gram + RIDGE * mass.sum() * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram, weighted.T @ x)


class LQNetsWeight(CodebookBase):
    """Weights on levels of a basis that follows them.

    Attributes:
        basis: v, positive, [k].
        unit: u, shape [] or [C].
    """

    follows_range = True
    scale_tensor: str | None = None
    basis: T
    unit: T

    def __init__(self, params: QuantParams, weight: T, momentum: float = 0.1) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights that training starts from.
            momentum: share of the newest basis in the moving average.
        """
        super().__init__(params)
        self.momentum = momentum
        powers = 2.0 ** torch.arange(params.spec.bits)
        self.register_buffer("basis", START_REACH * powers / powers.sum())
        self.register_buffer("unit", torch.ones(params.scale.shape))
        self.fit(weight.detach(), START_ITERATIONS)

    def _rows(self, weight: T) -> tuple[T, T]:
        """Return rows divided by their unit, the mean magnitude, and the unit, [rows, 1]."""
        rows = scale_rows(weight, self.params)
        unit = row_magnitude(rows)[:, None]
        return rows / unit, unit

    @torch.no_grad()
    def fit(self, weight: T, iterations: int = 1, momentum: float = 1.0) -> None:
        """Fit basis and unit to the weights.

        Args:
            weight: any shape.
            iterations: pairs of half steps (QEM), neither of which increases the squared error.
            momentum: share of the result in the moving average.
        """
        rows, unit = self._rows(weight)
        flat, mass = rows.reshape(-1), (unit.square() * counted_positions(rows)).reshape(-1)
        basis = self.basis
        for _ in range(iterations):
            basis = fitted_basis(flat, nearest_signs(flat, basis), mass / mass.mean()).abs()
        self.basis = torch.lerp(self.basis, basis.clamp(min=SMALLEST_SCALE), momentum)
        self.unit = per_scale(unit, self.params)

    def update_range(self, weight: T) -> None:
        """Move the basis towards the one that fits the weights."""
        self.fit(weight, momentum=self.momentum)

    @property
    def scale(self) -> T:
        """Difference between neighbouring levels of the file, shape [] or [C]."""
        return self.unit * (self.basis.sum() / TOP_LEVEL)

    @torch.no_grad()
    def codes(self, weight: T) -> T:
        """Return the level of the file of each weight, as floats."""
        rows = scale_rows(weight, self.params) / self.unit.reshape(-1, 1)
        top = TOP_LEVEL / self.basis.sum()
        levels = (nearest_signs(rows, self.basis) @ self.basis * top).round()
        return from_scale_rows(levels, weight, self.params)

    def forward(self, x: T) -> T:
        """Round weights to the levels."""
        if self.training:
            self.update_range(x.detach())
        rounded = self.codes(x) * broadcast_scale(self.scale, x, self.params)
        return x + (rounded - x).detach()

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the level of each weight, as floats, and the code book."""
        signs = all_signs(len(self.basis)).to(self.basis)
        levels = (signs @ self.basis * (TOP_LEVEL / self.basis.sum())).round()
        return self.codes(weight), self.codebook(self.scale, levels.cpu().numpy())

    def with_zero_level(self) -> WeightModule:
        """Return a module with the level 0 for weights that are exactly 0."""
        return ZeroLevel(self)
