"""Entropy calibration: the threshold of least Kullback-Leibler divergence."""

from dataclasses import KW_ONLY
from typing import Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range

MAX_BITS = 8


@dataclass(frozen=True)
class Entropy(Calibrator):
    """Clip where the rounded distribution has the least divergence from the exact one.

    minimize over t: KL(P || Q_t) = sum P ln(P / Q_t),  lo = -t (0 where no x is negative), hi = t

    `tensorrt`: P is the first i bins of |x|, with all values beyond in the last of them; Q merges
    the first i bins into L levels, spread evenly over the bins that are not empty; t = (i + 0.5)
    bin widths. L = 2^bits for values of one sign, else 2^(bits - 1). Bin 0 is replaced by bin 1,
    because the zeros of a Relu, which are exact, would outweigh the rest.
    `n2d2`: P is the whole histogram, Q that of the clipped values in 2^bits bins, read at every
    bin of P; t falls from the maximum in steps of 1 %.

    The divergence ignores how far values are moved: at few bits it clips too much. The histogram
    has too few bins for more than 8 bits.

    Args:
        form: `tensorrt` or `n2d2`.
        passes: for `n2d2`: searches in a row, each on the histogram clipped by the one before.
    Source: Migacz 2017, "8-bit Inference with TensorRT", GTC; N2D2 (CEA-LIST), Histogram.cpp.
        Departure: N2D2's steps are 0.01, and its activations at most 1.
    """

    _: KW_ONLY
    form: Literal["tensorrt", "n2d2"] = "tensorrt"
    passes: int = Field(default=1, ge=1, le=5)

    def supports(self, spec: QuantSpec) -> None:
        """Check the width.

        Raises:
            ValueError: more than 8 bits.
        """
        if spec.bits > MAX_BITS:
            raise ValueError(
                f"entropy is defined for 2 to {MAX_BITS} bits, found {spec.bits}: its histogram "
                "has too few bins for more levels; use mse or minmax"
            )

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid over [-t, t] within the observed range, widened to contain zero."""
        self.supports(spec)
        if not stats.histogram.any() or stats.lo == stats.hi:
            return params_from_range(stats.lo, stats.hi, spec)
        if self.form == "n2d2":
            threshold = n2d2_threshold(stats, 2**spec.bits, self.passes)
        else:
            one_sided = stats.lo >= 0 or stats.hi <= 0
            # A signed symmetric grid has only half of its codes on each side of zero.
            halved = not one_sided or (spec.symmetric and spec.signed)
            levels = 2 ** (spec.bits - int(halved))
            bins = tensorrt_bins(stats.magnitudes.astype(np.float64), levels)
            threshold = float(np.ldexp(bins + 0.5, stats.exponent))
        return params_from_range(max(stats.lo, -threshold), min(stats.hi, threshold), spec)


def tensorrt_bins(counts: np.ndarray, levels: int) -> int:
    """Return the number of bins of |x| to keep; all where no threshold has a finite divergence.

    Args:
        counts: of bins of equal width from zero up, float [bins].
        levels: of the quantized distribution.
    """
    counts = counts.copy()
    if len(counts) > 1:
        counts[0] = counts[1]
    total = counts.sum()
    # Sums over a range of bins are differences of these.
    mass, filled, own = (
        np.concatenate([[0.0], np.cumsum(terms)])
        for terms in (counts, counts > 0, _product_log(counts, counts))
    )
    best, least = len(counts), np.inf
    for width in range(1, len(counts) // levels + 1):
        # Of all thresholds with levels of this width, only the last level differs.
        bins = np.arange(width * levels, min((width + 1) * levels, len(counts) + 1))
        starts = np.arange(levels) * width
        sums, sizes = np.diff(mass[starts]), np.diff(filled[starts])
        inner = _product_log(sums, sums / np.maximum(sizes, 1)).sum()
        beyond, last = total - mass[bins], mass[bins] - mass[starts[-1]]
        reference = counts[bins - 1] + beyond  # P's last bin
        size = filled[bins - 1] - filled[starts[-1]] + (reference > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            outer = np.where(last + beyond > 0, (last + beyond) * np.log(last / size), 0.0)
            errors = (own[bins - 1] + _product_log(reference, reference) - inner - outer) / total
            errors += np.log(mass[bins] / total)
        errors[~np.isfinite(errors)] = np.inf
        k = int(errors.argmin())
        if errors[k] < least:
            best, least = int(bins[k]), float(errors[k])
    return best


def _product_log(factor: np.ndarray, argument: np.ndarray) -> np.ndarray:
    """Return factor * ln(argument), and 0 where the factor is 0."""
    filled = factor > 0
    return np.where(filled, factor * np.log(np.where(filled, argument, 1.0)), 0.0)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Compute sum p ln(p / q) of two histograms, each divided by its sum; skips p = 0.

    Returns:
        Infinity where q is 0 and p is not.
    """
    filled = p > 0
    if not filled.any() or (q[filled] <= 0).any():
        return float("inf")
    p, q = p[filled] / p.sum(), q[filled] / q.sum()
    return float(p @ np.log(p / q))


def n2d2_threshold(stats: Stats, levels: int, passes: int = 1) -> float:
    """Return N2D2's threshold.

    Args:
        stats: with a histogram.
        levels: bins of the quantized distribution.
        passes: searches, each below the threshold of the one before.
    """
    edges, counts = stats.bins
    middle = (edges[1:] + edges[:-1]) / 2
    largest = max(-stats.lo, stats.hi)
    threshold = largest
    for _ in range(passes):
        limit, least = threshold, np.inf
        values = np.clip(middle, -limit, limit)
        for k in range(100, 0, -1):
            trial = largest * k / 100
            if trial > limit:
                continue
            lowest = 0.0 if stats.lo >= 0 else -trial
            place = (np.clip(values, lowest, trial) - lowest) / (trial - lowest) * levels
            index = place.astype(np.int64).clip(0, levels - 1)
            quantized = np.bincount(index, weights=counts, minlength=levels)
            error = divergence(counts, quantized[index])
            if error < least:
                threshold, least = trial, error
    return float(threshold)
