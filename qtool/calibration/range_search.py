"""Search of a range: scaled copies of the observed one, scored by a function of the grid."""

from collections.abc import Callable

import numpy as np

from qtool.calibration.statistics import Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


def search_range(
    stats: Stats, spec: QuantSpec, score: Callable[[QuantParams], float], candidates: int
) -> QuantParams:
    """Return the grid with the smallest score; the observed range is one of those tried.

    Both limits are scaled by one factor first; on an asymmetric grid of a two-sided value then the
    upper limit alone, then the lower one.

    Args:
        stats: with the observed limits.
        spec: the requested grid.
        score: smaller is better; the first of equal ones wins.
        candidates: factors tried per search, from 1 down to 1 / candidates.
    """
    full_lo, full_hi = min(stats.lo, 0.0), max(stats.hi, 0.0)
    lo, hi = full_lo, full_hi
    best = params_from_range(stats.lo, stats.hi, spec)
    error = score(best)
    factors = np.arange(candidates, 0, -1) / candidates
    two_sided = full_lo < 0 < full_hi and not spec.symmetric
    for scaled in ("both", "hi", "lo") if two_sided else ("both",):
        shrink_lo, shrink_hi = scaled != "hi", scaled != "lo"
        fixed_lo, fixed_hi = lo, hi
        for factor in factors:
            pair = (
                full_lo * factor if shrink_lo else fixed_lo,
                full_hi * factor if shrink_hi else fixed_hi,
            )
            trial = params_from_range(*pair, spec)
            loss = score(trial)
            if loss < error:
                error, best, (lo, hi) = loss, trial, pair
    return best
