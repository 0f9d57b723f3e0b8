"""MSE calibration: the range with the smallest squared error of the rounded values."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.range_search import search_range
from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, fake_quantize, params_from_range

# Wider grids have steps below the width of a bin, in which values are spread evenly.
FINE_BITS = 12


@dataclass(frozen=True)
class MSE(Calibrator):
    """Choose the range with the smallest error of the rounded values.

    minimize over lo, hi: sum |x - fake_quantize(x; lo, hi)| ^ p

    Both limits are scaled by one factor first, then each limit alone. Candidates are scored on the
    histogram, so the time does not grow with the data. The full range is one of them, so that on
    the histogram the error is at most that of min-max.

    Args:
        candidates: factors tried per search, from 1 down to 1 / candidates.
        p: exponent of the error; 2 is the squared error, 2.4 gives clipping more weight.
    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", sec. 3.1,
        arXiv:2106.08295. Departure: the paper does not fix the search; we scale both limits, then
        each alone. For p = 2 the error is integrated over bins, with values spread evenly inside
        each: at the middles of bins alone, steps that are a multiple of the bin width would score
        too well.
    """

    by_output: ClassVar[bool] = True
    _: KW_ONLY
    candidates: int = Field(default=100, ge=2)
    p: float = Field(default=2.0, gt=0, allow_inf_nan=False)

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid with the smallest error among the candidates."""
        if not stats.histogram.any() or stats.lo == stats.hi:
            return params_from_range(stats.lo, stats.hi, spec)
        score = (squared_error(stats) if self.p == 2 else None) or _error(stats, self.p)
        return search_range(stats, spec, score, self.candidates)


def squared_error(stats: Stats) -> Callable[[QuantParams], float] | None:
    """Return a function that computes the sum of squared errors of a grid on a histogram.

    It uses cumulative moments of the histogram: its time is proportional to the number of codes of
    the grid, not to that of bins.

    Args:
        stats: statistics of the value.

    Returns:
        The function; None where there is no histogram.
    """
    if not stats.histogram.any() or stats.lo == stats.hi:
        return None
    edges, counts = stats.bins
    width = np.diff(edges)
    density = np.append(np.divide(counts, width, out=np.zeros_like(width), where=width > 0), 0.0)
    middle = (edges[1:] + edges[:-1]) / 2
    moments = [counts, counts * middle, counts * (middle**2 + width**2 / 12)]
    running = [np.concatenate([[0.0], np.cumsum(m)]) for m in moments]

    def below(limit: np.ndarray) -> list[np.ndarray]:
        """Return count, sum and sum of squares of the values below each limit."""
        index = np.floor(np.ldexp(limit, -stats.exponent)).astype(np.int64) - stats.first
        # All values lie below the last edge, also those of a last bin of width zero.
        index = np.where(limit >= edges[-1], len(counts), index.clip(0, len(counts) - 1))
        at, share = edges[index], density[index]
        parts = (limit - at, (limit**2 - at**2) / 2, (limit * limit**2 - at * at**2) / 3)
        return [total[index] + share * part for total, part in zip(running, parts, strict=True)]

    def score(params: QuantParams) -> float:
        if params.spec.bits > FINE_BITS:
            limits = np.clip([params.lo, params.hi], edges[0], edges[-1])
            return _fine_error(
                params, [[0.0, *p, t[-1]] for p, t in zip(below(limits), running, strict=True)]
            )
        codes = np.arange(params.spec.qmin, params.spec.qmax + 1)
        levels = (codes - params.zero_point) * params.scale.astype(np.float64)
        limits = np.clip((levels[1:] + levels[:-1]) / 2, edges[0], edges[-1])
        n, x, xx = (
            np.diff(np.concatenate([[0.0], part, [total[-1]]]))
            for part, total in zip(below(limits), running, strict=True)
        )
        return float(np.sum(xx - 2 * levels * x + levels**2 * n))

    return score


def _fine_error(params: QuantParams, moments: Sequence[Sequence[float]]) -> float:
    """Compute the error of steps below a bin: step^2 / 12 inside the range, clipping outside.

    Args:
        params: the grid.
        moments: count, sum and sum of squares of the values below: the smallest one, the lower
            limit, the upper limit, infinity.
    """
    n, x, xx = moments
    clipped = 0.0
    for limit, a, b in ((float(params.lo), 0, 1), (float(params.hi), 2, 3)):
        clipped += (xx[b] - xx[a]) - 2 * limit * (x[b] - x[a]) + limit**2 * (n[b] - n[a])
    return float(clipped + (n[2] - n[1]) * float(params.scale) ** 2 / 12)


def _error(stats: Stats, p: float) -> Callable[[QuantParams], float]:
    """Return a function that computes the sum of ``|error| ** p`` at the middle of each bin."""
    edges, counts = stats.bins
    filled = counts > 0
    middle, counts = ((edges[1:] + edges[:-1]) / 2)[filled], counts[filled]

    def score(params: QuantParams) -> float:
        return float(counts @ np.abs(middle - fake_quantize(middle, params)) ** p)

    return score
