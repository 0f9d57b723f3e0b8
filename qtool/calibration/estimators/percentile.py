"""Percentile calibration: the range between two quantiles."""

from dataclasses import KW_ONLY

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class Percentile(Calibrator):
    """Clip the share 1 - q of values at each end of the range.

    lo = quantile(x, 1 - q), hi = quantile(x, q)

    Limits are interpolated inside histogram bins and stay within the observed range.

    Args:
        q: share of values below the upper limit (and above the lower one).
    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", sec. 4,
        arXiv:2004.09602.
    """

    _: KW_ONLY
    q: float = Field(default=0.9999, gt=0.5, le=1.0)

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid between the two quantiles, widened to contain zero."""
        if not stats.histogram.any():
            return params_from_range(stats.lo, stats.hi, spec)
        lo, hi = quantile(stats, 1 - self.q), quantile(stats, self.q)
        return params_from_range(max(lo, stats.lo), min(hi, stats.hi), spec)


def quantile(stats: Stats, q: float) -> float:
    """Return the value below which the share ``q`` of the histogram lies."""
    mass = np.concatenate([[0], np.cumsum(stats.histogram)])
    return float(np.interp(q * mass[-1], mass, stats.edges))
