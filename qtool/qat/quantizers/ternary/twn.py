"""TWN: weights 0 up to a threshold, else the sign times the mean magnitude of these."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from qtool.qat.quantizers.base import CodebookBase, WeightModule
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import (
    broadcast_scale,
    from_scale_rows,
    per_scale,
    row_magnitude,
    scale_rows,
)
from qtool.quant.primitives import SMALLEST_SCALE, QuantParams

T = torch.Tensor

# For normally and uniformly distributed weights the best threshold is 0.75 and 0.67 times the mean.
THRESHOLD = 0.7


@dataclass(frozen=True)
class TWN(NarrowWeightQuantizer):
    """w = a sign(w) where |w| > 0.7 mean |w|, else 0; a = mean |w| of those weights.

    Threshold and a are computed from the weights at every step, for each scale. dL/dw is that of
    the rounded weight everywhere. Activations learn as in lsq.

    Args:
        exact: instead of 0.7 the threshold of smallest squared error: that of the k largest
            magnitudes with the largest (sum of the k)^2 / k.
    Source: Li and Liu 2016, "Ternary Weight Networks", sec. 2, arXiv:1605.04711. Departure: a scale
        per channel, where the paper has one per layer.
    """

    _: KW_ONLY
    exact: bool = False

    starts_from_codes: ClassVar[bool] = False
    scheme: ClassVar[str] = "ternary"
    reads_scheme: ClassVar[bool] = False

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return TWNWeight(params, weight, self.exact)


def ternary_codes(rows: T, threshold: T) -> T:
    """Return sign(w) where |w| is above the threshold of its row, else 0; float, shape of rows."""
    return rows.sign() * (rows.abs() > threshold)


def mean_magnitude(rows: T, codes: T) -> T:
    """Return the mean magnitude of the weights of each row whose code is not 0, [rows]."""
    count = codes.abs().sum(1).clamp(min=1)
    return ((rows * codes).sum(1) / count).clamp(min=SMALLEST_SCALE)


def exact_threshold(size: T) -> T:
    """Return the threshold of smallest squared error for the magnitudes of each row, [rows, 1].

    It lies between the k-th and the next magnitude, for the k with the largest (sum of the k)^2/k.
    """
    falling = size.sort(1, descending=True).values
    count = torch.arange(1, size.shape[1] + 1, device=size.device)
    score = falling.double().cumsum(1).square() / count
    following = torch.cat([falling[:, 1:], torch.zeros_like(falling[:, :1])], 1)
    return following.gather(1, score.argmax(1, keepdim=True))


class TWNWeight(CodebookBase):
    """Ternary weights whose threshold and scale follow the weights.

    Attributes:
        scale: mean magnitude of the weights that are not rounded to 0, shape [] or [C].
    """

    follows_range = True
    scale: T

    def __init__(self, params: QuantParams, weight: T, exact: bool) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights that training starts from.
            exact: use the threshold of smallest squared error.
        """
        super().__init__(params)
        self.exact = exact
        self.register_buffer("scale", torch.tensor(params.scale, dtype=torch.float32))
        self.update_range(weight)

    @torch.no_grad()
    def codes(self, weight: T) -> T:
        """Return -1, 0 or 1 for each weight, as floats, in the shape of :func:`scale_rows`."""
        rows = scale_rows(weight, self.params)
        if self.exact:
            return ternary_codes(rows, exact_threshold(rows.abs()))
        return ternary_codes(rows, THRESHOLD * row_magnitude(rows)[:, None])

    @torch.no_grad()
    def update_range(self, weight: T) -> None:
        """Set the scale to the mean magnitude of the weights that are not rounded to 0."""
        rows = scale_rows(weight, self.params)
        self.scale = per_scale(mean_magnitude(rows, self.codes(weight)), self.params)

    def forward(self, x: T) -> T:
        """Round weights to -scale, 0 or scale."""
        if self.training:
            self.update_range(x)
        rounded = self._shaped(x) * broadcast_scale(self.scale, x, self.params)
        return x + (rounded - x).detach()

    def _shaped(self, weight: T) -> T:
        return from_scale_rows(self.codes(weight), weight, self.params)

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the codes of ``weight``, as floats, and the code book -1, 0, 1."""
        return self._shaped(weight), self.codebook(self.scale, np.array([-1, 0, 1]))
