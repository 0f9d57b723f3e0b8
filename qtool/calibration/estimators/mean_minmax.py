"""Mean min-max calibration: the averages of the samples' minima and maxima."""

from dataclasses import KW_ONLY
from typing import ClassVar

from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class MeanMinMax(Calibrator):
    """Average the limits of the samples, all with the same weight.

    lo = mean_i min(x_i), hi = mean_i max(x_i), x_i the elements of sample i

    Values on one grid take the lowest and the highest of their averages.

    Source: Wei et al. 2022, "QDrop", arXiv:2203.05740, whose AvgMinMax observer averages batches.
        Departure: samples instead of batches, so that the size of a batch does not change the
        range.
    """

    needs_histogram: ClassVar[bool] = False
    _: KW_ONLY

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid over the mean limits, widened to contain zero."""
        if not stats.extremes.samples:
            return params_from_range(stats.lo, stats.hi, spec)
        lo, hi = stats.extremes.mean
        return params_from_range(max(lo, stats.lo), min(hi, stats.hi), spec)
