"""Statistics of one value, collected in one pass and merged exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np

from qtool.calibration.class_scores import ClassScores
from qtool.calibration.extremes import SMOOTHING, Extremes
from qtool.quant.primitives import QuantParams, QuantSpec

# Most bins of a histogram: at least 4 for each code of an 8-bit grid.
BINS = 4096


@dataclass(frozen=True, eq=False)
class ChannelNormals:
    """Normal distributions of a value's channels, from the BatchNorm that was folded in front.

    Attributes:
        mean, std: beta and |gamma| of the BatchNorm, float64 [C].
        lo, hi: limits that a Relu or Clip behind it puts on all channels.
    """

    mean: np.ndarray
    std: np.ndarray
    lo: float = -np.inf
    hi: float = np.inf

    def limits(self, deviations: float) -> tuple[float, float]:
        """Return lowest and highest value within so many standard deviations of any channel."""
        low = float((self.mean - deviations * self.std).min())
        high = float((self.mean + deviations * self.std).max())
        return float(np.clip(low, self.lo, self.hi)), float(np.clip(high, self.lo, self.hi))


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of one value; ``a + b`` are those of the elements of both.

    ``a + b`` takes the samples of b for later ones of the same value; ``a | b`` is for two values
    on one grid, whose samples are the same ones.

    The histogram's bins are ``[k * 2**exponent, (k + 1) * 2**exponent)`` for ``k`` from ``first``:
    two histograms merge exactly by coarsening the finer one, in any order, so statistics can be
    collected in one pass, in parallel, without knowing the range beforehand.

    Attributes:
        lo, hi: smallest and largest value of all elements, float.
        histogram: int64 [at most BINS], counts of a subset of the elements.
        first: index k of the first bin.
        exponent: log2 of the bin width.
        extremes: averages of the limits of single samples.
        normals: distributions that BatchNorm states, one for each value on the grid; empty where
            one of the values has none.
        scores: rows of class scores; of outputs of the network alone.
    """

    lo: float = np.inf
    hi: float = -np.inf
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    first: int = 0
    exponent: int = -1000
    extremes: Extremes = field(default_factory=Extremes)
    normals: tuple[ChannelNormals, ...] = ()
    scores: ClassScores = field(default_factory=ClassScores)

    @property
    def count(self) -> int:
        """Elements in the histogram."""
        return int(self.histogram.sum())

    @property
    def edges(self) -> np.ndarray:
        """Bin edges, float64 [bins + 1]."""
        return np.ldexp(
            np.arange(self.first, self.first + len(self.histogram) + 1.0), self.exponent
        )

    @property
    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Bin edges, limited to the observed range, and the counts as floats."""
        return np.clip(self.edges, self.lo, self.hi), self.histogram.astype(np.float64)

    @property
    def magnitudes(self) -> np.ndarray:
        """Counts of |x| in bins ``2**exponent`` wide from zero up, int64 [bins].

        Zero is an edge of the histogram, so the bins of negative values are mirrored exactly.
        """
        index = np.arange(len(self.histogram)) + self.first
        index = np.where(index < 0, -index - 1, index)
        return np.bincount(index, weights=self.histogram).astype(np.int64)

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
            histogram,
            first,
            exponent,
            self.extremes + other.extremes,
            self.normals or other.normals,
            self.scores + other.scores,
        )

    def counting(self, elements: np.ndarray, lo: float, hi: float) -> "Stats":
        """Return ``self + part``, part being the statistics of some elements, in one step.

        Args:
            elements: float, any shape, not empty; the histogram counts them.
            lo: finite lower limit of all elements that these represent.
            hi: their upper limit.
        """
        largest = max(abs(lo), abs(hi), float(np.finfo(np.float32).tiny))
        exponent = max(int(np.ceil(np.log2(largest / (BINS / 2 - 1)))), self.exponent)
        index = _bin_numbers(elements, exponent)
        before = self.coarsened(exponent)
        first, size = int(index.min()), len(before.histogram)
        if size:
            first = min(first, before.first)
        start = before.first - first if size else 0
        index -= first
        counts = np.bincount(index.astype(np.int32), minlength=start + size)
        counts[start : start + size] += before.histogram
        return replace(
            self,
            lo=min(self.lo, lo),
            hi=max(self.hi, hi),
            histogram=counts,
            first=first,
            exponent=exponent,
        )

    def __or__(self, other: "Stats") -> "Stats":
        return replace(
            self + other,
            extremes=self.extremes | other.extremes,
            normals=(*self.normals, *other.normals) if self.normals and other.normals else (),
        )


# Exponents of bins whose numbers float32 holds exactly: multiplying by 2**-exponent overflows
# below, and above a small number underflows to zero, where a negative one loses its sign.
EXACT = range(-126, 1)


def _bin_numbers(elements: np.ndarray, exponent: int) -> np.ndarray:
    """Return floor(x / 2**exponent) of each element, whole floats, [N].

    Args:
        elements: float, any shape.
        exponent: log2 of the bin width.
    """
    exact = elements.dtype == np.float32 and exponent in EXACT
    dtype = np.float32 if exact else np.float64  # float32 takes half of the time
    scaled = np.multiply(elements, dtype(2.0**-exponent), dtype=dtype).reshape(-1)
    return np.asarray(np.floor(scaled, out=scaled))


# Elements of an array that enter the histogram; limits are taken over all elements.
SAMPLED = 1 << 14


def limits(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the smallest and the largest element of each sample, float64 [2, samples].

    Args:
        array: float, any shape, not empty.
        rows: samples in the array, along its first axis; an array that they do not divide counts
            as one sample.
    """
    samples = samples_of(array, rows)
    return np.array([samples.min(1), samples.max(1)], np.float64)


def samples_of(array: np.ndarray, rows: int) -> np.ndarray:
    """Return an array with a row for each sample, [samples, elements].

    Args:
        array: any shape, not empty.
        rows: samples in the array, along its first axis; an array that they do not divide counts
            as one sample.
    """
    divides = array.ndim > 0 and array.shape[0] % rows == 0
    return np.ascontiguousarray(array).reshape(rows if divides else 1, -1)


def evenly_spread(array: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return about ``count`` elements of an array, [N]; all where it has not many more.

    Args:
        array: any shape.
        count: elements to return.
        seed: shifts the positions, so that batches give different ones.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    # An odd stride walks through all rows and channels instead of one column.
    step = max(1, flat.size // count) | 1
    return flat[(seed * 7919) % step :: step]


def summarize(
    array: np.ndarray, histogram: bool, seed: int, rows: int = 1, smoothing: float = SMOOTHING
) -> Stats:
    """Compute the statistics of one array; the histogram counts SAMPLED evenly spread elements.

    Args:
        array: float, any shape.
        histogram: False leaves the histogram empty.
        seed: shifts the sampled positions, so that batches sample different ones.
        rows: samples in the array, along its first axis; an array that they do not divide counts
            as one sample.
        smoothing: averaging constant of the moving average of extremes.
    """
    if array.size == 0:
        return Stats()
    low, high = limits(array, rows)
    lo, hi = float(low.min()), float(high.max())
    if not (np.isfinite(lo) and np.isfinite(hi)):
        return Stats(lo, hi)
    stats = Stats(lo, hi, extremes=Extremes.of(low, high, smoothing))
    return stats.counting(evenly_spread(array, SAMPLED, seed), lo, hi) if histogram else stats


class Calibrator(Protocol):
    """Compute the grid of one value from its statistics; the type of the entries of CALIBRATORS.

    A call is a pure function of its arguments. An entry inherits from this class, whose attributes
    are those of a calibrator that reads the histogram and takes all widths.
    """

    needs_histogram: ClassVar[bool] = True
    """False for an estimator that reads only limits: no histogram is collected then."""

    needs_batchnorm: ClassVar[bool] = False
    """True for an estimator that reads ``normals``: a model without any is refused."""

    needs_scores: ClassVar[bool] = False
    """True for an estimator that reads ``scores``: a plan without quantized ones is refused."""

    by_output: ClassVar[bool] = False
    """True: clipped inputs of linear layers are searched again by the error of their outputs."""
    finalists: ClassVar[Mapping[str, "Calibrator"]] = {}
    """Estimators that are compared with this one by the output of the network on held-out samples.

    Statistics are then collected from the other samples.
    """

    @property
    def smoothing(self) -> float:
        """Averaging constant with which the moving average of extremes is collected."""
        return SMOOTHING

    @property
    def trials(self) -> int:
        """Single ranges that are replaced one after the other, at most, behind the finalists."""
        return 0

    def __hash__(self) -> int:
        """Return a hash; an entry's, which is a frozen dataclass, is that of its options."""
        return object.__hash__(self)

    def supports(self, spec: QuantSpec) -> None:
        """Check that the estimator is defined for a grid.

        Raises:
            ValueError: it is not; names the estimator and its range.
        """
        return None

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid.

        Args:
            stats: statistics of all values that share the grid.
            spec: the requested bits, sign and symmetry.

        Raises:
            ValueError: the range is not finite, or the grid is not supported.
        """
        ...


@lru_cache(maxsize=256)
def estimate(calibrator: Calibrator, stats: Stats, spec: QuantSpec) -> QuantParams:
    """Return the grid by an estimator; the last ones are kept, since `auto` compares the same ones.

    Args:
        calibrator: an entry with its options.
        stats: of all values that share the grid.
        spec: the requested grid.

    Raises:
        ValueError: as the estimator does.
    """
    return calibrator(stats, spec)
