"""A code book of 2^bits values, shared by all weights of a layer, placed where the weights lie."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import SMALLEST_SCALE, Codebook, QuantSpec
from qtool.weights.grouping import as_rows, from_rows, scale_shape


@dataclass(frozen=True)
class KMeans:
    """The 2^bits values of least squared error, by Lloyd's iteration from evenly spaced ones.

    With a scale per channel, the weights of each channel are divided by their largest magnitude
    first, and count in the error with its square. The values lie on an int8 grid, so that integer
    kernels run; in files whose weights become floats at load, on a 16-bit grid.

    Args:
        iterations: at most; it stops when nothing moves.
    Source: Han et al. 2016, "Deep Compression", sec. 3 (linear initialization), arXiv:1510.00149.
        Departure: one scale per channel; the paper has none.
    """

    fixed_bits: ClassVar[int | None] = None
    low_bit_only: ClassVar[bool] = True

    _: KW_ONLY
    iterations: int = Field(default=300, ge=1)

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, level_bits: int = 8
    ) -> tuple[Codebook, np.ndarray]:
        """The code book and each weight's level, in the shape of the weights.

        Args:
            weight: float, any shape.
            spec: its bits give the number of values, its granularity the scales.
            level_bits: 8 or 16, of the grid the values lie on.
        """
        rows = as_rows(weight, spec)
        largest = np.nanmax(np.abs(rows), 1)
        reach = 2 ** (level_bits - 1) - 1
        scale = np.maximum(largest / reach, SMALLEST_SCALE).astype(np.float32)
        held = ~np.isnan(rows)
        normal = (rows / scale.astype(np.float64)[:, None])[held]
        mass = np.broadcast_to(scale.astype(np.float64)[:, None] ** 2, rows.shape)[held]
        centroids = lloyd(normal, mass, 2**spec.bits, self.iterations)
        levels = np.unique(np.rint(centroids).clip(-reach, reach)).astype(np.int32)
        shape = scale_shape(weight, spec)
        grid = Codebook(spec, scale.reshape(shape), np.zeros(shape, np.int32), levels)
        codes = np.zeros(rows.shape, grid.container)
        codes[held] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, normal, "right")]
        return grid, from_rows(codes, weight, spec)


def lloyd(x: np.ndarray, mass: np.ndarray, k: int, iterations: int) -> np.ndarray:
    """Centroids, ascending; the distortion never grows from one iteration to the next.

    Args:
        x: float64 [N].
        mass: float64 [N], how much each number counts.
        k: how many centroids; with no more than k different numbers these are the centroids.
        iterations: at most.
    """
    distinct = np.unique(x)
    if len(distinct) <= k:
        return distinct
    order = np.argsort(x)
    x, mass = x[order], mass[order]
    total = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * x)])
    centroids = np.linspace(x[0], x[-1], k)
    for _ in range(iterations):
        cuts = np.searchsorted(x, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], cuts, [len(x)]])
        weight = np.diff(total[ends])
        means = np.divide(np.diff(moment[ends]), weight, out=centroids.copy(), where=weight > 0)
        if np.array_equal(means, centroids):
            break
        centroids = means
    return centroids
