"""Moving-average calibration: limits that follow the minima and maxima of recent samples."""

from dataclasses import KW_ONLY
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.extremes import SMOOTHING
from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class MovingAverage(Calibrator):
    """Average the limits of the samples, later samples with more weight.

    r <- (1 - c) * r + c * limit(x_i), for the lower and the upper limit; r starts at limit(x_0)

    The result depends on the order of the samples, which is that of the data set.

    Args:
        averaging_constant: c, the weight of a new sample.
    Source: Jacob et al. 2018, sec. 3.1, arXiv:1712.05877; the default is that of PyTorch's
        MovingAverageMinMaxObserver. Departure: those average the limits of batches; we average
        those of single samples, so that the size of a batch does not change the range.
    """

    needs_histogram: ClassVar[bool] = False
    _: KW_ONLY
    averaging_constant: float = Field(default=SMOOTHING, gt=0, le=1)

    @property
    def smoothing(self) -> float:
        """The averaging constant."""
        return self.averaging_constant

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid over the moving averages, widened to contain zero."""
        if not stats.extremes.samples:
            return params_from_range(stats.lo, stats.hi, spec)
        lo, hi = stats.extremes.moving
        return params_from_range(max(lo, stats.lo), min(hi, stats.hi), spec)
