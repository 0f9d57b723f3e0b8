"""MSE calibration: the range with the smallest squared error of the rounded values."""

from dataclasses import KW_ONLY
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.histogram_error import PowerError, SquaredError
from qtool.calibration.range_search import search_range
from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


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
        score = SquaredError(stats) if self.p == 2 else PowerError(stats, self.p)
        return search_range(stats, spec, score, self.candidates)
