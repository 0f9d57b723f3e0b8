"""Uniform weights: equal steps over the full range, below 8 bits over that of smallest error."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import PerBlock, PerChannel, QuantParams, QuantSpec, params_from_range
from qtool.weights.grouping import as_rows, scale_shape


@dataclass(frozen=True)
class Uniform:
    """Equal steps between codes.

    At 8 bits and more the range of a channel is that of its weights: clipping does not reduce the
    error there. Below, the range is scaled by the factor of smallest squared error; the full range
    is one of the candidates, so the error is at most that of the full range.

    Args:
        candidates: number of factors tried, evenly spaced from 1 down to 1 / candidates.
    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", sec. 3.1,
        arXiv:2106.08295.
    """

    fixed_bits: ClassVar[int | None] = None
    low_bit_only: ClassVar[bool] = False
    _: KW_ONLY
    candidates: int = Field(default=80, ge=1)

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, level_bits: int = 8
    ) -> tuple[QuantParams, None]:
        """Return the grid; codes are rounded to nearest later.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        if spec.bits >= 8 and not isinstance(spec.granularity, PerBlock):
            axes = tuple(range(weight.ndim))
            if isinstance(spec.granularity, PerChannel):
                axes = tuple(a for a in axes if a != spec.granularity.axis % weight.ndim)
            return params_from_range(weight.min(axes), weight.max(axes), spec), None
        rows, shape = as_rows(weight, spec), scale_shape(weight, spec)
        lo, hi = np.fmin.reduce(rows, 1), np.fmax.reduce(rows, 1)
        factor = self._best_factors(rows, lo, hi, spec)
        return params_from_range(
            (factor * lo).reshape(shape), (factor * hi).reshape(shape), spec
        ), None

    def _best_factors(
        self, rows: np.ndarray, lo: np.ndarray, hi: np.ndarray, spec: QuantSpec
    ) -> np.ndarray:
        """Return the factor on the range of each row with the smallest squared error, [rows]."""
        best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
        for k in range(self.candidates, 0, -1):
            factor = k / self.candidates
            grid = params_from_range(factor * lo, factor * hi, spec)
            scale, zero = grid.scale.astype(np.float64)[:, None], grid.zero_point[:, None]
            codes = (np.rint(rows / scale) + zero).clip(spec.qmin, spec.qmax)
            error = np.nansum(((codes - zero) * scale - rows) ** 2, 1)
            better = error < least
            best[better], least[better] = factor, error[better]
        return best
