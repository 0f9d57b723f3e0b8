"""Numbers that the rules compare with their thresholds: small pure functions of arrays."""

from collections.abc import Sequence

import numpy as np

# Share of channels left out at either end of a comparison of ranges: dead channels are no finding.
TRIM = 0.05
# Channels narrower than this share of the widest are taken as dead.
DEAD = 1e-4


def range_ratio(limits: np.ndarray) -> float:
    """Return how many times wider the widest channels are than the narrowest.

    ``q95(limits) / q05(limits)`` over the channels that are not dead; 1 for fewer than two.

    Args:
        limits: largest magnitude of each channel, [C].
    """
    used = np.asarray(limits, np.float64)
    used = used[used > DEAD * used.max(initial=0.0)]
    if used.size < 2:
        return 1.0
    low, high = np.quantile(used, (TRIM, 1 - TRIM))
    return float(high / low)


def outlier_ratio(limit: float, quantile: float) -> float:
    """Return how far a range reaches beyond the 99.9 % quantile of the magnitudes, as a factor.

    Args:
        limit: largest magnitude that the grid represents.
        quantile: of the value's magnitudes.
    """
    return limit / quantile if quantile > 0 else 1.0


def clipped_share(values: np.ndarray, lo: float, hi: float) -> float:
    """Return the share of values outside [lo, hi].

    Args:
        values: float, any shape.
        lo: lowest value of the grid.
        hi: highest value of the grid.
    """
    return float(np.mean((values < lo) | (values > hi))) if values.size else 0.0


def shift_share(mean_error: np.ndarray, square_error: np.ndarray) -> float:
    """Return the share of the error's power that is constant per channel, which a bias can remove.

    ``sum_c mean_c^2 / sum_c E[error_c^2]``, between 0 and 1.

    Args:
        mean_error: of each channel, [C].
        square_error: mean of the squared error of each channel, [C].
    """
    power = float(np.sum(square_error))
    return float(np.sum(np.square(mean_error)) / power) if power > 0 else 0.0


def growth(first: Sequence[float], both: Sequence[float]) -> float:
    """Return by which factor the range of a value grows when as many samples are added.

    Args:
        first: lower and upper limit over half of the samples, zero included.
        both: over all of them.
    """
    before = max(first[1], 0.0) - min(first[0], 0.0)
    after = max(both[1], 0.0) - min(both[0], 0.0)
    return after / before if before > 0 else 1.0


def gap_below_median(values_db: np.ndarray) -> np.ndarray:
    """Return by how many dB each layer lies below the median of all; negative above it.

    Args:
        values_db: signal to noise of each layer, [L].
    """
    return np.asarray(np.median(values_db) - values_db) if values_db.size else values_db
