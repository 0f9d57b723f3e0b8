"""The full observed range."""

from dataclasses import KW_ONLY

from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class MinMax:
    """Use every value that was seen: nothing is clipped, outliers cost resolution.

    Source: Jacob et al. 2018, sec. 3, arXiv:1712.05877.
    """

    _: KW_ONLY

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """The grid over [stats.lo, stats.hi], widened to hold zero."""
        return params_from_range(stats.lo, stats.hi, spec)
