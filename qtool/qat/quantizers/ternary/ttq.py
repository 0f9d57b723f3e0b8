"""TTQ: ternary weights with a learned value on each side of 0."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import CodebookBase, WeightModule
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import (
    MIN_SCALE_SHARE,
    broadcast_scale,
    from_scale_rows,
    per_scale,
    scale_rows,
)
from qtool.qat.quantizers.ternary.twn import mean_magnitude, ternary_codes
from qtool.quant.primitives import QuantParams

T = torch.Tensor

# The larger of the two values is this level in the file, the other one a smaller whole number.
TOP_LEVEL = 127


@dataclass(frozen=True)
class TTQ(NarrowWeightQuantizer):
    """w = p u where w > d, -n u where w < -d, else 0; d = t max |w|; p and n learn.

    p and n belong to a layer, u to a channel: the mean magnitude of the weights beyond d when
    training starts. dL/dp = sum of u g over w > d, dL/dn = -sum of u g over w < -d; dL/dw = p g,
    n g and g above, below and between. In the file the levels are -127 n / m, 0, 127 p / m,
    rounded, with m = max(p, n), in one int8 code book; training computes with these levels.

    Args:
        threshold: t.
    Source: Zhu et al. 2017, "Trained Ternary Quantization", sec. 3, arXiv:1612.01064. Departures:
        max |w| of a channel, where the paper normalizes layers; u; dL/dn has the sign of -n; p and
        n, relative to u, learn at `scale_lr`: short training of ResNet-20 diverges at the paper's
        rate, that of the weights for p u and n u.
    """

    _: KW_ONLY
    threshold: float = Field(default=0.05, ge=0, lt=1)

    starts_from_codes: ClassVar[bool] = False
    restricts_scales: ClassVar[bool] = False
    scheme: ClassVar[str] = "ternary"
    reads_scheme: ClassVar[bool] = False

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return TTQWeight(params, weight, self.threshold)


class TTQWeight(CodebookBase):
    """Ternary weights with two learned values of a layer, times a fixed factor per channel.

    Attributes:
        positive, negative: p and n, learned, shape [].
        unit: u, shape [] or [C].
    """

    scale_tensor: str | None = None
    unit: T

    def __init__(self, params: QuantParams, weight: T, threshold: float) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights that training starts from.
            threshold: share of the largest magnitude up to which weights are 0.
        """
        super().__init__(params)
        self.threshold = threshold
        self.positive, self.negative = (nn.Parameter(torch.ones(())) for _ in range(2))
        rows = scale_rows(weight.detach(), params)
        unit = mean_magnitude(rows, self._row_codes(rows))
        self.register_buffer("unit", per_scale(unit, params))

    def _row_codes(self, rows: T) -> T:
        return ternary_codes(rows, self.threshold * rows.abs().amax(1, keepdim=True))

    @torch.no_grad()
    def codes(self, weight: T) -> T:
        """Return -1, 0 or 1 for each weight, as floats."""
        rows = self._row_codes(scale_rows(weight, self.params))
        return from_scale_rows(rows, weight, self.params)

    @torch.no_grad()
    def levels(self) -> tuple[T, T]:
        """Return the levels of p and n in the file, whole numbers from 1 to 127, shape []."""
        top = TOP_LEVEL / torch.maximum(self.positive, self.negative)
        return (self.positive * top).round(), (self.negative * top).round()

    @property
    def scale(self) -> T:
        """Difference between neighbouring levels of the file, shape [] or [C]."""
        return self.unit * (torch.maximum(self.positive, self.negative).detach() / TOP_LEVEL)

    def forward(self, x: T) -> T:
        """Round weights to the three values."""
        codes = self.codes(x)
        step = broadcast_scale(self.scale, x, self.params)
        unit = broadcast_scale(self.unit, x, self.params)
        above, below = self.levels()
        rounded = torch.where(codes > 0, above, torch.where(codes < 0, -below, 0.0)) * step
        learned = ((codes > 0) * self.positive - (codes < 0) * self.negative) * unit
        slope = torch.where(codes > 0, self.positive, torch.where(codes < 0, self.negative, 1.0))
        surrogate = learned + slope.detach() * x  # has the paper's gradients
        return surrogate + (rounded - surrogate).detach()

    def project(self) -> None:
        """Clamp both values to positive numbers of which neither is far below the other."""
        with torch.no_grad():
            least = torch.maximum(self.positive, self.negative).clamp(min=1.0) * MIN_SCALE_SHARE
            for value in (self.positive, self.negative):
                value.copy_(torch.maximum(value, least))

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the codes of ``weight``, as floats, and the code book of the three levels."""
        above, below = self.levels()
        codes = self.codes(weight)
        codes = torch.where(codes > 0, above, torch.where(codes < 0, -below, 0.0))
        return codes, self.codebook(self.scale, np.array([-float(below), 0, float(above)]))
