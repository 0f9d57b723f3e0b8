"""Statistics of one value, collected in one pass and merged exactly."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np

from qtool.quant.primitives import QuantParams, QuantSpec

# Most bins of a histogram: at least 4 for each code of an 8-bit grid.
BINS = 4096


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of one value; ``a + b`` are those of the elements of both.

    The histogram's bins are ``[k * 2**exponent, (k + 1) * 2**exponent)`` for ``k`` from ``first``:
    two histograms merge exactly by coarsening the finer one, in any order, so statistics can be
    collected in one pass, in parallel, without knowing the range beforehand.

    Attributes:
        lo, hi: smallest and largest value of all elements, float.
        total, square: sum of elements and of squares, over ``count`` elements.
        count: elements in the histogram and the two sums.
        histogram: int64 [at most BINS], counts of a subset of the elements.
        first: index k of the first bin.
        exponent: log2 of the bin width.
    """

    lo: float = np.inf
    hi: float = -np.inf
    total: float = 0.0
    square: float = 0.0
    count: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    first: int = 0
    exponent: int = -1000

    @property
    def mean(self) -> float:
        """Mean of the counted elements."""
        return self.total / max(self.count, 1)

    @property
    def var(self) -> float:
        """Variance of the counted elements."""
        return max(self.square / max(self.count, 1) - self.mean**2, 0.0)

    @property
    def edges(self) -> np.ndarray:
        """Bin edges, float64 [bins + 1]."""
        return np.ldexp(
            np.arange(self.first, self.first + len(self.histogram) + 1.0), self.exponent
        )

    def coarsened(self, exponent: int) -> "Stats":
        """Return the statistics with bins ``2**exponent`` wide."""
        if exponent == self.exponent or not len(self.histogram):
            return replace(self, exponent=max(exponent, self.exponent))
        shift = exponent - self.exponent
        index = (np.arange(len(self.histogram)) + self.first) >> shift
        histogram = np.bincount(index - index[0], weights=self.histogram).astype(np.int64)
        return replace(self, histogram=histogram, first=int(index[0]), exponent=exponent)

    def __add__(self, other: "Stats") -> "Stats":
        exponent = max(self.exponent, other.exponent)
        while True:
            a, b = self.coarsened(exponent), other.coarsened(exponent)
            parts = [s for s in (a, b) if len(s.histogram)]
            first = min((s.first for s in parts), default=0)
            end = max((s.first + len(s.histogram) for s in parts), default=0)
            if end - first <= BINS:
                break
            exponent += 1
        histogram = np.zeros(end - first, np.int64)
        for s in parts:
            histogram[s.first - first : s.first - first + len(s.histogram)] += s.histogram
        return Stats(
            min(self.lo, other.lo),
            max(self.hi, other.hi),
            self.total + other.total,
            self.square + other.square,
            self.count + other.count,
            histogram,
            first,
            exponent,
        )


# Elements of one value and batch that enter the histogram; limits are taken over all elements.
SAMPLED = 1 << 14


def summarize(array: np.ndarray, histogram: bool, seed: int) -> Stats:
    """Compute the statistics of one array; the histogram counts SAMPLED evenly spread elements.

    Args:
        array: float, any shape.
        histogram: False leaves the histogram empty.
        seed: shifts the sampled positions, so that batches sample different ones.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.size == 0:
        return Stats()
    lo, hi = float(flat.min()), float(flat.max())
    if not histogram or not (np.isfinite(lo) and np.isfinite(hi)):
        return Stats(lo, hi)
    # An odd stride walks through all rows and channels instead of one column.
    step = max(1, flat.size // SAMPLED) | 1
    part = flat[(seed * 7919) % step :: step].astype(np.float64)
    largest = max(abs(lo), abs(hi), float(np.finfo(np.float32).tiny))
    exponent = int(np.ceil(np.log2(largest / (BINS / 2 - 1))))
    index = np.floor(np.ldexp(part, -exponent)).astype(np.int64)
    first = int(index.min())
    counts = np.bincount(index - first)
    return Stats(lo, hi, float(part.sum()), float(part @ part), part.size, counts, first, exponent)


class Calibrator(Protocol):
    """Compute the grid of one value from its statistics; the type of the entries of CALIBRATORS.

    A call is a pure function of its arguments.
    """

    needs_histogram: ClassVar[bool]
    """False for an estimator that reads only ``lo`` and ``hi``: no histogram is collected then."""

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid.

        Args:
            stats: statistics of all values that share the grid.
            spec: the requested bits, sign and symmetry.

        Raises:
            ValueError: the range is not finite.
        """
