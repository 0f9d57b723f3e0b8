"""K-th value calibration: the range between two order statistics."""

from dataclasses import KW_ONLY

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class KthValue(Calibrator):
    """Clip all values beyond the k-th smallest and the k-th largest one.

    k = min(floor(N * q), N - 1) + 1,  hi = k-th smallest x,  lo = k-th largest x

    A symmetric grid takes the k-th smallest magnitude. Unlike `percentile`, which interpolates,
    the limit is the place of one value; it is exact up to a bin of the histogram.

    Args:
        q: share of values below the upper limit (and above the lower one).
    Source: the "percentile" observer of PPQ, https://github.com/openppl-public/ppq, with its
        default. Departure: one pooled histogram; PPQ averages the limits of batches.
    """

    _: KW_ONLY
    q: float = Field(default=0.9999, gt=0.5, le=1.0)

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid between the two values, widened to contain zero."""
        total = int(stats.histogram.sum())
        if not total:
            return params_from_range(stats.lo, stats.hi, spec)
        k = min(int(total * self.q), total - 1) + 1
        if spec.symmetric and spec.signed:
            counts = stats.magnitudes
            edges = np.ldexp(np.arange(len(counts) + 1.0), stats.exponent)
            hi = min(order_statistic(edges, counts, k), max(-stats.lo, stats.hi))
            return params_from_range(-hi, hi, spec)
        lo = order_statistic(stats.edges, stats.histogram, total - k + 1)
        hi = order_statistic(stats.edges, stats.histogram, k)
        return params_from_range(max(lo, stats.lo), min(hi, stats.hi), spec)


def order_statistic(edges: np.ndarray, counts: np.ndarray, k: int) -> float:
    """Return the k-th smallest value of a histogram, spread evenly inside its bin.

    Args:
        edges: bin edges, float64 [bins + 1].
        counts: int64 [bins].
        k: from 1 to the sum of the counts.
    """
    total = np.cumsum(counts)
    index = int(np.searchsorted(total, k))
    place = (k - (total[index] - counts[index]) - 0.5) / counts[index]
    return float(edges[index] + place * (edges[index + 1] - edges[index]))
