"""Analytic calibration (ACIQ): the optimal range of a Gaussian or Laplace distribution."""

import math
from dataclasses import KW_ONLY
from functools import cache
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from qtool.calibration.histogram_error import squared_error
from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class ACIQ(Calibrator):
    """Clip where a Gaussian or Laplace distribution with the moments of the values has least error.

    lo = mean - alpha, hi = mean + alpha
    laplace:  alpha = b * W(3 * 4^bits), b = mean|x - mean|, W Lambert's function
    gaussian: alpha / sigma is the root of
              alpha * erfc(alpha / sqrt 2) - sqrt(2 / pi) * exp(-alpha^2 / 2) + alpha / (3 * 4^bits)

    Values of one sign are the half of a distribution about zero and have one bit more for it;
    b = E[x^2] / (2 E|x|) and sigma = sqrt(2 / pi) * E[x^2] / E|x| then do not depend on the share
    of zeros, as a Relu makes them.

    Args:
        distribution: `gaussian`, `laplace`, or `auto`, the one with the smaller squared error on
            the histogram.
    Source: Banner et al. 2019, "Post-training 4-bit quantization of convolution networks for
        rapid-deployment", arXiv:1810.05723. Departure: `auto` compares errors on the histogram;
        the closed form for Laplace and the moments of one-sided values are ours.
    """

    _: KW_ONLY
    distribution: Literal["auto", "gaussian", "laplace"] = "auto"

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid over the analytic range, within the observed one."""
        if not stats.histogram.any() or stats.lo == stats.hi:
            return params_from_range(stats.lo, stats.hi, spec)
        names = ("gaussian", "laplace") if self.distribution == "auto" else (self.distribution,)
        candidates = [_grid(stats, spec, name) for name in names]
        score = squared_error(stats)
        return candidates[0] if score is None else min(candidates, key=score)


def _grid(stats: Stats, spec: QuantSpec, distribution: str) -> QuantParams:
    factor = laplace_factor if distribution == "laplace" else gaussian_factor
    if stats.lo >= 0 or stats.hi <= 0:
        scale = _half_scale(stats, distribution)
        # A signed symmetric grid spends one bit on the sign that no value has.
        alpha = scale * factor(spec.bits if spec.symmetric and spec.signed else spec.bits + 1)
        lo, hi = -alpha, alpha
    else:
        mean, scale = _moments(stats, distribution)
        alpha = scale * factor(spec.bits)
        lo, hi = mean - alpha, mean + alpha
    return params_from_range(max(lo, stats.lo), min(hi, stats.hi), spec)


def _moments(stats: Stats, distribution: str) -> tuple[float, float]:
    """Return the mean, and sigma or b, of values spread evenly inside their bins.

    They are computed from the integer counts, which merge exactly in any order.
    """
    edges, counts = stats.bins
    width, middle, total = np.diff(edges), (edges[1:] + edges[:-1]) / 2, counts.sum()
    mean = float(counts @ middle / total)
    if distribution == "gaussian":
        return mean, float(np.sqrt(counts @ ((middle - mean) ** 2 + width**2 / 12) / total))
    inside = np.clip(mean, edges[:-1], edges[1:])
    below, above = (inside - edges[:-1]), (edges[1:] - inside)
    with np.errstate(invalid="ignore", divide="ignore"):
        split = (below**2 + above**2) / (2 * width)
    distance = np.where((edges[:-1] < mean) & (mean < edges[1:]), split, np.abs(middle - mean))
    return mean, float(counts @ distance / total)


def _half_scale(stats: Stats, distribution: str) -> float:
    """Return sigma or b of the distribution whose half the values are."""
    edges, counts = stats.bins
    middle = (edges[1:] + edges[:-1]) / 2
    magnitude = float(counts @ np.abs(middle))
    if not magnitude:
        return math.inf  # all sampled values are zero: the observed range remains
    ratio = float(counts @ (middle**2 + np.diff(edges) ** 2 / 12)) / magnitude
    return ratio / 2 if distribution == "laplace" else ratio * math.sqrt(2 / math.pi)


@cache
def laplace_factor(bits: int) -> float:
    """Return alpha / b, W(3 * 4^bits), by Newton's method on ln w + w = ln(3 * 4^bits)."""
    target = math.log(3) + bits * math.log(4)
    w = target
    for _ in range(50):
        w -= (math.log(w) + w - target) / (1 / w + 1)
    return w


@cache
def gaussian_factor(bits: int) -> float:
    """Return alpha / sigma by bisection on the derivative of the error, which rises through 0."""
    below, above = 0.1, 12.0
    for _ in range(60):
        a = (below + above) / 2
        slope = a * math.erfc(a / math.sqrt(2)) + a / (3 * 4.0**bits)
        slope -= math.sqrt(2 / math.pi) * math.exp(-a * a / 2)
        below, above = (a, above) if slope < 0 else (below, a)
    return (below + above) / 2
