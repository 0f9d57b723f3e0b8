"""K-means weights: a code book of 2^bits values, shared by all weights of a layer."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import SMALLEST_SCALE, Codebook, QuantSpec
from qtool.weights.grouping import as_rows, from_rows, scale_shape


@dataclass(frozen=True)
class KMeans:
    """The 2^bits values of smallest squared error, by Lloyd's iteration from evenly spaced values.

    With a scale per channel, the weights of each channel are first divided by their largest
    magnitude, and their errors are weighted by its square. The values are rounded to int8, which
    integer kernels read; those of weights that are dequantized at load to int16.

    Args:
        iterations: maximum number of iterations; they stop when the centroids do not change.
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
        """Return the code book and each weight's level, in the shape of the weights.

        Args:
            weight: float, any shape.
            spec: its bits give the number of values, its granularity the scales.
            level_bits: 8 or 16, width of the integers that the values are rounded to.
        """
        rows = as_rows(weight, spec)
        largest = np.nanmax(np.abs(rows), 1)
        reach = 2 ** (level_bits - 1) - 1
        scale = np.maximum(largest / reach, SMALLEST_SCALE).astype(np.float32)
        valid = ~np.isnan(rows)
        normal = (rows / scale.astype(np.float64)[:, None])[valid]
        mass = np.broadcast_to(scale.astype(np.float64)[:, None] ** 2, rows.shape)[valid]
        centroids = lloyd(normal, mass, 2**spec.bits, self.iterations)
        levels = np.unique(np.rint(centroids).clip(-reach, reach)).astype(np.int32)
        shape = scale_shape(weight, spec)
        grid = Codebook(spec, scale.reshape(shape), np.zeros(shape, np.int32), levels)
        codes = np.zeros(rows.shape, grid.container)
        codes[valid] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, normal, "right")]
        return grid, from_rows(codes, weight, spec)


def lloyd(x: np.ndarray, mass: np.ndarray, k: int, iterations: int) -> np.ndarray:
    """Compute k centroids of weighted numbers by Lloyd's iteration from evenly spaced ones.

    The weighted squared error never grows from one iteration to the next.

    Args:
        x: float64 [N].
        mass: float64 [N], weight of each number in the error.
        k: number of centroids; if x has at most k different numbers, these are the centroids.
        iterations: maximum number of iterations.

    Returns:
        float64 [at most k], ascending.
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
        edges = np.concatenate([[0], cuts, [len(x)]])
        weight = np.diff(total[edges])
        means = np.divide(np.diff(moment[edges]), weight, out=centroids.copy(), where=weight > 0)
        if np.array_equal(means, centroids):
            break
        centroids = means
    return centroids
