"""The range without its rarest values."""

from dataclasses import KW_ONLY

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class Percentile:
    """Clip the share 1 - q of values at each end.

    Limits are interpolated inside histogram bins and never exceed what was seen.

    Args:
        q: share of values kept below the upper limit (and above the lower one).
    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", sec. 4,
        arXiv:2004.09602.
    """

    _: KW_ONLY
    q: float = Field(default=0.9999, gt=0.5, le=1.0)

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """The grid between the two quantiles, widened to hold zero."""
        if not stats.histogram.any():
            return params_from_range(stats.lo, stats.hi, spec)
        lo, hi = quantile(stats, 1 - self.q), quantile(stats, self.q)
        return params_from_range(max(lo, stats.lo), min(hi, stats.hi), spec)


def quantile(stats: Stats, q: float) -> float:
    """The value below which the share ``q`` of the histogram lies."""
    mass = np.concatenate([[0], np.cumsum(stats.histogram)])
    return float(np.interp(q * mass[-1], mass, stats.edges))
