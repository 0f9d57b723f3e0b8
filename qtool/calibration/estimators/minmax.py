"""Min-max calibration: the full observed range."""

from dataclasses import KW_ONLY
from typing import ClassVar

from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class MinMax(Calibrator):
    """Cover the full observed range: no value is clipped, but outliers make the steps coarse.

    lo = min(x), hi = max(x)

    Source: Jacob et al. 2018, sec. 3, arXiv:1712.05877.
    """

    needs_histogram: ClassVar[bool] = False
    _: KW_ONLY

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid over [stats.lo, stats.hi], widened to contain zero."""
        return params_from_range(stats.lo, stats.hi, spec)
