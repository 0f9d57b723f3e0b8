"""Ternary weights: 0 up to a threshold, else the sign times the mean magnitude of the others."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import SMALLEST_SCALE, Codebook, QuantSpec
from qtool.weights.grouping import as_rows, counted_positions, from_rows, scale_shape


@dataclass(frozen=True)
class Ternary:
    """Values -1, 0 and 1 times the mean magnitude of the weights that are not 0.

    q = sign(w) where |w| > 0.7 mean(|w|), else 0; scale = mean(|w| where q is not 0)

    Args:
        exact: instead of the 0.7 rule, use the k largest magnitudes for the k of smallest squared
            error, which is the k with the largest (sum of the k)^2 / k.
    Source: Li and Liu 2016, "Ternary Weight Networks", sec. 2, arXiv:1605.04711.
    """

    fixed_bits: ClassVar[int | None] = 2
    low_bit_only: ClassVar[bool] = True
    _: KW_ONLY
    exact: bool = False

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, level_bits: int = 8
    ) -> tuple[Codebook, np.ndarray]:
        """Return the code book -1, 0, 1 and the codes, int8 in the shape of the weights."""
        rows = np.nan_to_num(as_rows(weight, spec))
        size = np.abs(rows)
        nonzero = (
            size >= _exact_threshold(size)
            if self.exact
            else size > _threshold(as_rows(weight, spec))
        )
        nonzero &= size > 0
        mean = (size * nonzero).sum(1) / np.maximum(nonzero.sum(1), 1)
        scale = np.maximum(mean, SMALLEST_SCALE).astype(np.float32)
        shape = scale_shape(weight, spec)
        levels = np.array([-1, 0, 1], np.int32)
        grid = Codebook(spec, scale.reshape(shape), np.zeros(shape, np.int32), levels)
        return grid, from_rows((np.sign(rows) * nonzero).astype(np.int8), weight, spec)


def _exact_threshold(size: np.ndarray) -> np.ndarray:
    """Return the k-th largest magnitude of each row, [rows, 1], for the k of smallest error."""
    falling = -np.sort(-size, 1)
    score = np.cumsum(falling, 1) ** 2 / np.arange(1, size.shape[1] + 1)
    return np.take_along_axis(falling, score.argmax(1)[:, None], 1)


def _threshold(rows: np.ndarray) -> np.ndarray:
    """Return the paper's 0.7 times the mean magnitude of each row, [rows, 1]."""
    return 0.7 * np.nanmean(np.abs(rows[:, counted_positions(rows)]), 1, keepdims=True)
