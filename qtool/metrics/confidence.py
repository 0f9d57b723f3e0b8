"""95 % confidence intervals of paired differences."""

import math
from collections.abc import Callable

import numpy as np

Z95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""
RESAMPLES = 1000
"""Enough for the 2.5 percentile: 25 resamples lie below it."""


def paired_interval(
    float_scores: np.ndarray, quant_scores: np.ndarray
) -> tuple[float, float, float]:
    """Compute the drop from float to quantized scores and its 95 % interval, in percentage points.

    With b samples right only in float and c right only quantized, of n, the drop is (b - c) / n.
    The interval is centred on d = (b - c) / (n + 2), with half-width
    z * sqrt((p + q - d^2) / (n + 2)), p = (b + 1) / (n + 2), q = (c + 1) / (n + 2). It keeps its
    coverage for few samples and has a width where b = c = 0; it is cut at -100 and 100 and widened
    to hold the drop itself.

    Args:
        float_scores: 0 or 1 for each sample, [n].
        quant_scores: the same samples' scores after quantization, [n].

    Returns:
        (drop, lo, hi); positive means quantization lost accuracy.

    Raises:
        ValueError: the scores are not of one length, not 0 or 1, or there are none.

    Source: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data", J. Educ. Behav. Stat. 37(4),
        doi:10.3102/1076998611411915.
        Departure: the cut, and the widening (it matters for n below about 10 only).
    """
    if float_scores.shape != quant_scores.shape or float_scores.ndim != 1:
        raise ValueError(f"scores have shapes {float_scores.shape}, {quant_scores.shape}")
    n = len(float_scores)
    if n == 0 or not np.isin([float_scores, quant_scores], (0, 1)).all():
        raise ValueError(f"expected at least one score, all 0 or 1; found {n}")
    b = int(np.sum(float_scores > quant_scores))
    c = int(np.sum(float_scores < quant_scores))
    p, q = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    drop = (b - c) / n
    lo = max(-1.0, min(p - q - half, drop))
    hi = min(1.0, max(p - q + half, drop))
    return 100 * drop, 100 * lo, 100 * hi


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Compute the 95 % interval of a share of samples, in %.

    (s + z^2 / 2n -+ z sqrt(s (1 - s) / n + z^2 / 4n^2)) / (1 + z^2 / n), for the share s.

    Args:
        share: of n samples, in %.
        n: number of samples, at least 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference",
        J. Am. Stat. Assoc. 22(158), doi:10.1080/01621459.1927.10502953.
    """
    s, z2 = share / 100, Z95**2
    centre, total = s + z2 / (2 * n), 1 + z2 / n
    half = Z95 * math.sqrt(s * (1 - s) / n + z2 / (4 * n * n))
    return 100 * max(0.0, centre - half) / total, 100 * min(total, centre + half) / total


def bootstrap_interval(
    total: Callable[[np.ndarray, np.ndarray], float], first: np.ndarray, second: np.ndarray
) -> tuple[float, float] | None:
    """Compute the 95 % interval of ``total(first) - total(second)`` by a paired bootstrap.

    1000 resamples with a fixed seed; the 2.5 and 97.5 percentiles, widened to hold the difference
    itself.

    Args:
        total: (scores, how often each sample counts) -> value.
        first: scores [N, ...] of one model.
        second: of the other, the same samples.

    Returns:
        (lo, hi), or None for a single sample.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13.
    """
    count = len(first)
    if count < 2:
        return None
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        drops.append(total(first, weights) - total(second, weights))
    ones = np.ones(count)
    drop = total(first, ones) - total(second, ones)
    finite = [value for value in drops if math.isfinite(value)]
    lo, hi = np.percentile([*finite, drop], [2.5, 97.5])
    return min(float(lo), drop), max(float(hi), drop)
