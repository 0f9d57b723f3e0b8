"""Minima and maxima of single samples, averaged in one pass and merged."""

from dataclasses import dataclass

import numpy as np

# The averaging constant of PyTorch's MovingAverageMinMaxObserver and of onnxruntime.
SMOOTHING = 0.01

# Every float32 is a whole number of units of 2**-UNIT, so that sums of integers are exact.
UNIT = 149


@dataclass(frozen=True)
class Extremes:
    """Averages of the minimum and maximum of each sample; ``a + b`` are those of a, then b.

    The plain averages merge exactly in any order: they are sums of integers. The moving average
    depends on the order of the samples, which is that of the data set. It merges as the affine map
    ``r -> decay * r + recent`` that the samples apply to the average before them:

        r_0 = m_0,  r <- (1 - c) * r + c * m  for every sample
        (d1, s1) then (d2, s2) = (d1 * d2, d2 * s1 + s2)

    which is associative up to the rounding of float64, but not commutative.

    Attributes:
        samples: number of samples.
        low_sum, high_sum: sums of the minima and maxima, in units of 2**-UNIT.
        first: minimum and maximum of the first sample.
        recent: sums of c * (1 - c)^(samples after it) * extremum over all samples.
        decay: (1 - c)^samples, what is left of an average before the first sample.
    """

    samples: int = 0
    low_sum: int = 0
    high_sum: int = 0
    first: tuple[float, float] = (0.0, 0.0)
    recent: tuple[float, float] = (0.0, 0.0)
    decay: float = 1.0

    @classmethod
    def of(cls, low: np.ndarray, high: np.ndarray, smoothing: float = SMOOTHING) -> "Extremes":
        """Return the averages of consecutive samples.

        Args:
            low: minimum of each sample, finite, [N], in dataset order.
            high: maximum of each sample, [N].
            smoothing: the averaging constant c.
        """
        low, high = low.astype(np.float64), high.astype(np.float64)
        weights = smoothing * (1 - smoothing) ** np.arange(len(low) - 1.0, -1.0, -1.0)
        return cls(
            len(low),
            sum(int(v) for v in np.ldexp(low, UNIT)),
            sum(int(v) for v in np.ldexp(high, UNIT)),
            (float(low[0]), float(high[0])),
            (float(weights @ low), float(weights @ high)),
            (1 - smoothing) ** len(low),
        )

    @property
    def mean(self) -> tuple[float, float]:
        """Mean of the minima and mean of the maxima; one sample at least."""
        return self.low_sum / (self.samples << UNIT), self.high_sum / (self.samples << UNIT)

    @property
    def moving(self) -> tuple[float, float]:
        """Exponential moving averages of the minima and maxima, started at the first sample."""
        low, high = (
            recent + self.decay * first
            for recent, first in zip(self.recent, self.first, strict=True)
        )
        return low, high

    def __add__(self, other: "Extremes") -> "Extremes":
        if not self.samples or not other.samples:
            return self if self.samples else other
        low, high = (
            other.decay * before + after
            for before, after in zip(self.recent, other.recent, strict=True)
        )
        return Extremes(
            self.samples + other.samples,
            self.low_sum + other.low_sum,
            self.high_sum + other.high_sum,
            self.first,
            (low, high),
            self.decay * other.decay,
        )

    def __or__(self, other: "Extremes") -> "Extremes":
        """Return averages that cover those of both: of two values on one grid."""
        if not self.samples or not other.samples:
            return self if self.samples else other
        # Equal counts of samples first: a constant has one sample.
        low = min(self.low_sum * other.samples, other.low_sum * self.samples)
        high = max(self.high_sum * other.samples, other.high_sum * self.samples)
        moving = (min(self.moving[0], other.moving[0]), max(self.moving[1], other.moving[1]))
        return Extremes(self.samples * other.samples, low, high, moving, moving, 0.0)
