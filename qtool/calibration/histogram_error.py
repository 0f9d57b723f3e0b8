"""Errors of grids on a histogram; many grids of one kind are scored at once."""

from typing import Protocol

import numpy as np

from qtool.calibration.statistics import Stats
from qtool.quant.primitives import QuantParams

# Wider grids have steps below the width of a bin, in which values are spread evenly.
FINE_BITS = 12


class Score(Protocol):
    """The error of grids; smaller is better."""

    def __call__(self, params: QuantParams) -> np.ndarray:
        """Return the error of each grid, in the shape of the scales, [] or [K]."""
        ...

    def at_least(self, params: QuantParams) -> np.ndarray:
        """Return a lower bound of it that costs little, in the shape of the scales."""
        ...


class SquaredError:
    """The sum of squared errors.

    It uses cumulative moments of the histogram, with values spread evenly inside each bin: its time
    is proportional to the number of codes of a grid, not to that of bins.
    """

    def __init__(self, stats: Stats) -> None:
        """Compute the moments.

        Args:
            stats: with a histogram, of more than one value.
        """
        self._edges, counts = stats.bins
        self._first, self._per_unit = stats.first, 2.0**-stats.exponent
        width = np.diff(self._edges)
        density = np.divide(counts, width, out=np.zeros_like(width), where=width > 0)
        self._density = np.append(density, 0.0)
        middle = (self._edges[1:] + self._edges[:-1]) / 2
        moments = [counts, counts * middle, counts * (middle**2 + width**2 / 12)]
        self._running = [np.concatenate([[0.0], np.cumsum(m)]) for m in moments]

    def __call__(self, params: QuantParams) -> np.ndarray:
        """Return the error of each grid."""
        if params.spec.bits > FINE_BITS:
            inside = np.diff(self._below(_range_of(params))[0])[..., 0]
            steps = inside * params.scale.astype(np.float64) ** 2 / 12
            return np.asarray(self.at_least(params) + steps)
        codes = np.arange(params.spec.qmin, params.spec.qmax + 1)
        levels = (codes - params.zero_point[..., None]) * params.scale[..., None].astype(np.float64)
        n, x, xx = self._between((levels[..., 1:] + levels[..., :-1]) / 2)
        return np.asarray(np.sum(xx - 2 * levels * x + levels**2 * n, axis=-1))

    def at_least(self, params: QuantParams) -> np.ndarray:
        """Return the error of the values outside each grid."""
        limits = _range_of(params)
        n, x, xx = (part[..., ::2] for part in self._between(limits))
        return np.asarray(np.sum(xx - 2 * limits * x + limits**2 * n, axis=-1))

    def _between(self, limits: np.ndarray) -> list[np.ndarray]:
        """Return count, sum and sum of squares below the first limit, between, and above."""
        parts = []
        for part, total in zip(self._below(limits), self._running, strict=True):
            padded = np.empty((*part.shape[:-1], part.shape[-1] + 2))
            padded[..., 0], padded[..., 1:-1], padded[..., -1] = 0.0, part, total[-1]
            parts.append(np.diff(padded))
        return parts

    def _below(self, limits: np.ndarray) -> list[np.ndarray]:
        """Return count, sum and sum of squares of the values below each limit."""
        edges, last = self._edges, len(self._edges) - 1
        limit = np.clip(limits, edges[0], edges[-1])
        index = np.floor(limit * self._per_unit).astype(np.int64) - self._first
        # All values lie below the last edge, also those of a last bin of width zero.
        index = np.where(limit >= edges[-1], last, index.clip(0, last - 1))
        at, share = edges[index], self._density[index]
        square, square_at = limit * limit, at * at
        parts = (limit - at, (square - square_at) / 2, (square * limit - square_at * at) / 3)
        return [
            total[index] + share * part for total, part in zip(self._running, parts, strict=True)
        ]


class PowerError:
    """The sum of ``|error| ** p`` at the middle of each bin."""

    def __init__(self, stats: Stats, p: float) -> None:
        """Read the bins.

        Args:
            stats: with a histogram.
            p: exponent.
        """
        edges, counts = stats.bins
        filled = counts > 0
        self._middle = ((edges[1:] + edges[:-1]) / 2)[filled]
        self._counts, self._p = counts[filled], p
        moments = (self._counts, self._counts * self._middle)
        self._running = [np.concatenate([[0.0], np.cumsum(m)]) for m in moments]

    def __call__(self, params: QuantParams) -> np.ndarray:
        """Return the error of each grid."""
        scale, zero = params.scale[..., None].astype(np.float64), params.zero_point[..., None]
        codes = np.rint(self._middle / scale) + zero
        rounded = (np.clip(codes, params.spec.qmin, params.spec.qmax) - zero) * scale
        return np.asarray(np.abs(self._middle - rounded) ** self._p @ self._counts)

    def at_least(self, params: QuantParams) -> np.ndarray:
        """Return a bound of the error of the values outside: that of equal distances.

        sum_n d_n^p >= n * (sum_n d_n / n)^p   for p >= 1 (Jensen)
        """
        if self._p < 1:
            return np.zeros(params.scale.shape)
        limits, total = _range_of(params), 0.0
        for side, sign in ((0, -1), (1, 1)):
            end = limits[..., side]
            index = np.searchsorted(self._middle, end)
            n, x = (r[index] if sign < 0 else r[-1] - r[index] for r in self._running)
            distance = np.maximum(sign * (x - end * n), 0.0)
            total = total + n * (distance / np.maximum(n, 1)) ** self._p
        return np.asarray(total)


def _range_of(params: QuantParams) -> np.ndarray:
    """Return the lowest and the highest level of each grid, float64 [..., 2]."""
    codes = np.array([params.spec.qmin, params.spec.qmax])
    return (codes - params.zero_point[..., None]) * params.scale[..., None].astype(np.float64)


def squared_error(stats: Stats) -> SquaredError | None:
    """Return the squared error on a value's histogram; None where there is none, or one value."""
    return SquaredError(stats) if stats.histogram.any() and stats.lo < stats.hi else None
