"""Histogram calibration: PyTorch's greedy search for the range of least squared error."""

from bisect import bisect_left, bisect_right
from dataclasses import KW_ONLY

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range

# Share of the values that one step of the search may cut off at one end.
STEP = 1e-5


@dataclass(frozen=True)
class Histogram(Calibrator):
    """Cut off the ends of the histogram, bin by bin, for as long as the squared error falls.

    error = sum over bins of density * integral of (x - center(x))^2,  2^bits centers in the range

    The end that skips more bins for 0.001 % of the values moves first. The search stops at the
    first increase of the error, so that it may stay at the full range where `mse`, which tries
    all candidates, clips.

    Args:
        bins: bins of the search, over the observed range.
    Source: HistogramObserver of PyTorch. Departure: PyTorch searches with 256 centers for every
        width; we use 2^bits, without which ranges below 8 bits are far too wide.
    """

    _: KW_ONLY
    bins: int = Field(default=2048, ge=2, le=1 << 16)

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid over the range where the search stops, widened to contain zero."""
        if not stats.histogram.any() or stats.lo == stats.hi:
            return params_from_range(stats.lo, stats.hi, spec)
        edges, counts = stats.bins
        mass = np.concatenate([[0.0], np.cumsum(counts)])
        width = (stats.hi - stats.lo) / self.bins
        limits = stats.lo + width * np.arange(self.bins + 1)
        histogram = np.diff(np.interp(limits, edges, mass, left=0.0, right=mass[-1]))
        first, last = search(histogram, 2**spec.bits)
        lo, hi = stats.lo + width * first, stats.lo + width * (last + 1)
        return params_from_range(max(lo, stats.lo), min(hi, stats.hi), spec)


def search(histogram: np.ndarray, levels: int) -> tuple[int, int]:
    """Return the first and the last bin of the range where the greedy search stops.

    Args:
        histogram: counts of bins of equal width, float [bins].
        levels: centers of the destination grid.
    """
    running = np.cumsum(histogram).tolist()
    total, first, last = running[-1], 0, len(histogram) - 1
    alpha, beta, least = 0.0, 1.0, np.inf
    while alpha < beta:
        left = bisect_left(running, (alpha + STEP) * total, first, last)
        right = max(bisect_right(running, (beta - STEP) * total, first, last + 1) - 1, first)
        if left - first > last - right:
            alpha += STEP
            candidate = (left, last)
        else:
            beta -= STEP
            candidate = (first, right)
        if candidate == (first, last):
            continue
        error = quantization_error(histogram, *candidate, levels)
        if error > least:
            break
        least, (first, last) = error, candidate
    return first, last


def quantization_error(histogram: np.ndarray, first: int, last: int, levels: int) -> float:
    """Compute the squared error of a range of bins, in squared bin widths.

    Values are spread evenly inside each bin; a bin may lie across several destination bins.

    Args:
        histogram: counts of bins of equal width, float [bins].
        first: bin at the lower end of the range.
        last: bin at the upper end of the range.
        levels: destination bins in the range.
    """
    width = (last - first + 1) / levels
    begin = np.arange(len(histogram)) - float(first)
    end = begin + 1
    begin_level = np.floor(begin / width).clip(0, levels - 1)
    end_level = np.floor(end / width).clip(0, levels - 1)
    from_center = begin - (begin_level + 0.5) * width
    to_center = end - (end_level + 0.5) * width
    # From the begin to the edge of its level, across whole levels, and on to the end. Products:
    # numpy's power is 20 times slower.
    level = (width / 2) ** 3
    cubes = (end_level - begin_level) * (2 * level)
    cubes += to_center * to_center * to_center - from_center * from_center * from_center
    return float(histogram @ cubes) / 3
