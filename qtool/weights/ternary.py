"""Three values a weight: nothing below a threshold, else its sign times the mean of the rest."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import SMALLEST_SCALE, Codebook, QuantSpec
from qtool.weights.grouping import as_rows, from_rows, scale_shape


@dataclass(frozen=True)
class Ternary:
    """-1, 0 or 1 times the mean magnitude of the weights that are not 0.

    A weight becomes 0 where its magnitude is at most 0.7 times the channel's mean magnitude.

    Args:
        exact: instead of the 0.7 rule, keep the k largest magnitudes for the k that leaves the
            smallest squared error: the largest (sum of the k)^2 / k.
    Source: Li and Liu 2016, "Ternary Weight Networks", sec. 2, arXiv:1605.04711.
    """

    fixed_bits: ClassVar[int | None] = 2
    low_bit_only: ClassVar[bool] = True

    _: KW_ONLY
    exact: bool = False

    def __call__(self, weight: np.ndarray, spec: QuantSpec) -> tuple[Codebook, np.ndarray]:
        """The code book -1, 0, 1 and the codes, int8 in the shape of the weights."""
        rows = np.nan_to_num(as_rows(weight, spec))
        size = np.abs(rows)
        kept = (
            size >= self._least_kept(size)[:, None]
            if self.exact
            else size > _threshold(as_rows(weight, spec))
        )
        kept &= size > 0
        mean = (size * kept).sum(1) / np.maximum(kept.sum(1), 1)
        scale = np.maximum(mean, SMALLEST_SCALE).astype(np.float32)
        shape = scale_shape(weight, spec)
        levels = np.array([-1, 0, 1], np.int32)
        grid = Codebook(spec, scale.reshape(shape), np.zeros(shape, np.int32), levels)
        return grid, from_rows((np.sign(rows) * kept).astype(np.int8), weight, spec)

    def _least_kept(self, size: np.ndarray) -> np.ndarray:
        """The smallest magnitude that is kept in each row."""
        falling = -np.sort(-size, 1)
        score = np.cumsum(falling, 1) ** 2 / np.arange(1, size.shape[1] + 1)
        return np.take_along_axis(falling, score.argmax(1)[:, None], 1)[:, 0]


def _threshold(rows: np.ndarray) -> np.ndarray:
    return 0.7 * np.nanmean(np.abs(rows), 1, keepdims=True)
