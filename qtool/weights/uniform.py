"""Uniform weights: equal steps over the full range, below 8 bits over that of smallest error."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import PerBlock, PerChannel, QuantParams, QuantSpec, params_from_range
from qtool.weights.grouping import scale_shape
from qtool.weights.range_factors import pieces, rounding_errors


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
        factors = 1 - np.arange(self.candidates) / self.candidates
        best = []
        for rows in pieces(weight, spec):
            lo, hi = np.fmin.reduce(rows, 1)[:, None], np.fmax.reduce(rows, 1)[:, None]
            errors = rounding_errors(rows, params_from_range(factors * lo, factors * hi, spec))
            factor = factors[errors.argmin(1)]  # of equal ones the largest
            best.append((factor * lo[:, 0], factor * hi[:, 0]))
        shape = scale_shape(weight, spec)
        lo, hi = (np.concatenate(limits).reshape(shape) for limits in zip(*best, strict=True))
        return params_from_range(lo, hi, spec), None
