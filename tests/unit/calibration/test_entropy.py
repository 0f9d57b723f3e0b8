"""Entropy: known answers of both forms, and the widths that are refused."""

import numpy as np
import pytest

from qtool.calibration.estimators.entropy import (
    Entropy,
    divergence,
    n2d2_threshold,
    tensorrt_bins,
)
from qtool.calibration.statistics import summarize
from qtool.quant.primitives import QuantSpec

RNG = np.random.default_rng(7)


def merged(counts: np.ndarray, reference: np.ndarray, levels: int) -> np.ndarray:
    """Q of Migacz's search: bins merged into levels, spread over those that are not empty in P."""
    starts = np.arange(levels) * (len(counts) // levels)
    filled = (reference > 0).astype(np.float64)
    sums, sizes = np.add.reduceat(counts, starts), np.add.reduceat(filled, starts)
    share = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
    return np.repeat(share, np.diff([*starts, len(counts)])) * filled


def test_ppq_example():
    """Known answer: P = [1, 0, 2, 3, 5, 3, 1, 7] in 2 levels; KL = 0.150315."""
    p = np.array([1, 0, 2, 3, 5, 3, 1, 7.0])
    q = merged(p, p, 2)
    assert q.tolist() == [2, 0, 2, 2, 4, 4, 4, 4]
    assert divergence(p, q) == pytest.approx(0.150315, abs=1e-6)


def test_the_last_level_takes_the_rest():
    assert merged(np.ones(7), np.ones(7), 3).tolist() == [1] * 7
    assert merged(np.arange(7.0), np.ones(7), 3).tolist() == [0.5, 0.5, 2.5, 2.5, 5, 5, 5]


def test_divergence_is_never_negative_and_infinite_where_q_is_zero():
    p = np.array([1.0, 2, 3])
    assert divergence(p, p * 5) == pytest.approx(0, abs=1e-15)
    assert divergence(p, p[::-1].copy()) > 0
    assert divergence(p, np.array([1.0, 0, 3])) == np.inf
    assert divergence(np.array([0.0, 2, 3]), np.array([0.0, 2, 3])) == 0


@pytest.mark.parametrize("form", ["tensorrt", "n2d2"])
def test_rare_outliers_are_clipped(form):
    """Known range: between 3 sigma and the maximum."""
    values = np.append(RNG.normal(0, 1, 15_000), [20.0, -15.0]).astype(np.float32)
    stats = summarize(values, True, 0)
    params = Entropy(form=form)(stats, QuantSpec(8, True, True))
    assert 3 < float(params.hi) < 20


def test_the_zeros_of_a_relu_do_not_count():
    """Half of the values are 0; the threshold is about that of the magnitudes of a Gaussian."""
    values = RNG.normal(0, 1, 16_000).astype(np.float32)
    rectified = summarize(np.maximum(values, 0), True, 0)
    params = Entropy()(rectified, QuantSpec(8, False, False))
    assert float(params.lo) == 0 and float(params.hi) > 2.5


def test_a_grid_of_few_bins_stays_whole():
    assert tensorrt_bins(np.ones(3), 128) == 3
    assert tensorrt_bins(np.zeros(300), 128) == 300


def test_more_passes_of_n2d2_never_widen_the_range():
    stats = summarize(RNG.standard_t(2, 15_000).astype(np.float32), True, 0)
    thresholds = [n2d2_threshold(stats, 16, passes) for passes in (1, 2, 3, 5)]
    assert thresholds == sorted(thresholds, reverse=True)


@pytest.mark.parametrize("bits", [9, 16])
def test_more_than_eight_bits_are_refused(bits):
    spec = QuantSpec(bits, True, True)
    stats = summarize(RNG.normal(0, 1, 100).astype(np.float32), True, 0)
    for refuse in (Entropy().supports, lambda s: Entropy()(stats, s)):
        with pytest.raises(ValueError, match=f"entropy is defined for 2 to 8 bits, found {bits}"):
            refuse(spec)


def _by_definition(counts: np.ndarray, levels: int) -> int:
    """Migacz's search as it is written: every threshold, every bin."""
    counts = counts.copy()
    counts[0] = counts[1]
    best, least = len(counts), np.inf
    for bins in range(levels, len(counts) + 1):
        p = counts[:bins].copy()
        p[-1] += counts[bins:].sum()
        if (error := divergence(p, merged(counts[:bins], p, levels))) < least:
            best, least = bins, error
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_search_by_sums_finds_the_threshold_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    count, levels = int(rng.integers(20, 300)), int(2 ** rng.integers(2, 5))
    falling = np.exp(-np.arange(count) / count * rng.uniform(0, 12))
    counts = np.floor(rng.exponential(1000, count) * falling) * (rng.random(count) < 0.7)
    assert tensorrt_bins(counts, levels) == _by_definition(counts, levels)
