"""K-th value: the known answer, its symmetric form, and the share that it clips."""

import numpy as np
import pytest

from qtool.calibration.estimators.kth_value import KthValue, order_statistic
from qtool.calibration.statistics import summarize
from qtool.quant.primitives import QuantSpec

RNG = np.random.default_rng(2)


def test_ppq_indexing():
    """Known answer: 0..9999 at q = 0.999 is the 9991st value, 9990."""
    stats = summarize(RNG.permutation(10_000).astype(np.float32), True, 0)
    width = 2.0**stats.exponent
    params = KthValue(q=0.999)(stats, QuantSpec(8, False, False))
    assert order_statistic(stats.edges, stats.histogram, 9991) == pytest.approx(9990, abs=width)
    assert float(params.hi) == pytest.approx(9990, abs=width + float(params.scale))


def test_the_first_and_the_last_value_are_in_their_bins():
    values = np.float32([3, 5, 9])
    stats = summarize(values, True, 0)
    for k, value in enumerate(values, 1):
        place = order_statistic(stats.edges, stats.histogram, k)
        assert place == pytest.approx(value, abs=2.0**stats.exponent)


def test_a_symmetric_grid_counts_magnitudes():
    """Half of the values are far below zero: their k-th magnitude counts, not the k-th value."""
    values = np.float32([*-RNG.uniform(0, 8, 5000), *RNG.uniform(0, 1, 5000)])
    stats = summarize(values, True, 0)
    params = KthValue(q=0.99)(stats, QuantSpec(8, True, True))
    assert float(params.hi) == pytest.approx(np.sort(np.abs(values))[9900], abs=0.05)
    assert stats.magnitudes.sum() == 10_000


@pytest.mark.parametrize("q", [0.6, 0.9, 0.999, 1.0])
def test_it_clips_at_most_its_share(q):
    values = RNG.standard_t(2, 15_000).astype(np.float32)
    stats = summarize(values, True, 0)
    params = KthValue(q=q)(stats, QuantSpec(16, False, False))
    slack = 2.0**stats.exponent + float(params.scale)
    assert np.mean(values > float(params.hi) + slack) <= 1 - q
    assert np.mean(values < float(params.lo) - slack) <= 1 - q
