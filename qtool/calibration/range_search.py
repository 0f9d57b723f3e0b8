"""Search of a range: scaled copies of the observed one, scored by the error of their grids."""

from dataclasses import replace

import numpy as np

from qtool.calibration.histogram_error import Score
from qtool.calibration.statistics import Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range

# Every so many candidates are scored first: their least error rules out most of the others.
COARSE = 8


def search_range(stats: Stats, spec: QuantSpec, score: Score, candidates: int) -> QuantParams:
    """Return the grid with the smallest score; the observed range is one of those tried.

    Both limits are scaled by one factor first; on an asymmetric grid of a two-sided value then the
    upper limit alone, then the lower one.

    Args:
        stats: with the observed limits.
        spec: the requested grid.
        score: smaller is better; the first of equal ones wins.
        candidates: factors tried per search, from 1 down to 1 / candidates.
    """
    full = np.array([min(stats.lo, 0.0), max(stats.hi, 0.0)])
    limits = full
    best = params_from_range(stats.lo, stats.hi, spec)
    error = float(score(best))
    factors = np.arange(candidates, 0, -1) / candidates
    two_sided = full[0] < 0 < full[1] and not spec.symmetric
    for scaled in ([True, True], [False, True], [True, False])[: 3 if two_sided else 1]:
        pairs = np.where(scaled, np.outer(factors, full), limits)
        trials = params_from_range(pairs[:, 0], pairs[:, 1], spec)
        index, loss = _least(score, trials, error)
        if loss < error:
            error, best, limits = loss, _of(trials, index), pairs[index]
    return best


def _least(score: Score, trials: QuantParams, limit: float) -> tuple[int, float]:
    """Return the position of the first of the best grids, and its score, if it is below a limit.

    Args:
        score: of each grid.
        trials: grids, scale [K].
        limit: grids that are certainly worse are not scored.
    """
    errors = np.full(trials.scale.shape, np.inf)
    bounds = score.at_least(trials)
    for part in (slice(None, None, COARSE), slice(None)):
        open_ = np.flatnonzero(bounds[part] <= min(limit, errors.min()))
        chosen = np.arange(len(errors))[part][open_]
        chosen = chosen[np.isinf(errors[chosen])]
        if len(chosen):
            errors[chosen] = score(_of(trials, chosen))
    index = int(errors.argmin())
    return index, float(errors[index])


def _of(trials: QuantParams, index: int | np.ndarray) -> QuantParams:
    """Return some of the grids."""
    scale, zero_point = (np.asarray(a[index]) for a in (trials.scale, trials.zero_point))
    return replace(trials, scale=scale, zero_point=zero_point)
