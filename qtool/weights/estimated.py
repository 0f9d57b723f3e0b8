"""Weights with equal steps over a range that an estimator computes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qtool.quant.primitives import PerTensor, QuantParams, QuantSpec
from qtool.weights.grouping import as_rows, scale_shape

RangeEstimator = Callable[[np.ndarray, QuantSpec], QuantParams]
"""Returns the grid of weights [N] that share one scale."""


@dataclass(frozen=True)
class EstimatedRanges:
    """A weight scheme: equal steps, the range of each channel or block by an estimator.

    Attributes:
        estimate: computes the grid of the weights that share a scale.
    """

    fixed_bits: ClassVar[int | None] = None
    low_bit_only: ClassVar[bool] = False

    estimate: RangeEstimator

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, level_bits: int = 8
    ) -> tuple[QuantParams, None]:
        """Return the grid; codes are rounded to nearest later.

        Raises:
            ValueError: the estimator is not defined for this grid.
        """
        shape, one = scale_shape(weight, spec), replace(spec, granularity=PerTensor())
        grids = [self.estimate(row[~np.isnan(row)], one) for row in as_rows(weight, spec)]
        return QuantParams(
            spec,
            np.array([grid.scale for grid in grids], np.float32).reshape(shape),
            np.array([grid.zero_point for grid in grids], np.int32).reshape(shape),
        ), None
