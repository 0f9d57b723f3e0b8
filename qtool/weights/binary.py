"""Binary weights: the sign times the mean magnitude of the channel."""

from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import SMALLEST_SCALE, Codebook, QuantSpec
from qtool.weights.grouping import as_rows, counted_positions, from_rows, scale_shape


@dataclass(frozen=True)
class Binary:
    """The sign of each weight times the mean magnitude of its channel; 0 counts as positive.

    w ~ mean(|w|) * sign(w), the scale of smallest squared error for these signs.

    Source: Rastegari et al. 2016, "XNOR-Net", sec. 3.1 (binary weight networks), arXiv:1603.05279.
    """

    fixed_bits: ClassVar[int | None] = 1
    low_bit_only: ClassVar[bool] = True

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, level_bits: int = 8
    ) -> tuple[Codebook, np.ndarray]:
        """Return the code book -1, 1 and the signs, int8 in the shape of the weights."""
        rows = as_rows(weight, spec)
        mean = np.nanmean(np.abs(rows[:, counted_positions(rows)]), 1)
        scale = np.maximum(mean, SMALLEST_SCALE).astype(np.float32)
        shape = scale_shape(weight, spec)
        levels = np.array([-1, 1], np.int32)
        grid = Codebook(spec, scale.reshape(shape), np.zeros(shape, np.int32), levels)
        codes = np.where(rows >= 0, 1, -1).astype(np.int8)
        return grid, from_rows(codes, weight, spec)
