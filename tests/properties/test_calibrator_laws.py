"""Laws of statistics and calibrators on data that hypothesis makes up."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from qtool.calibration import CALIBRATORS, MSE, MinMax
from qtool.calibration.estimators.percentile import quantile
from qtool.calibration.statistics import BINS, Stats, summarize
from qtool.quant.primitives import QuantSpec, fake_quantize

VALUES = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-10, 10, width=32) | st.just(0.0)
ARRAYS = npst.arrays(np.float32, st.integers(1, 60), elements=VALUES)
SPECS = st.builds(QuantSpec, st.integers(2, 8), st.booleans(), st.booleans())


def seen(values) -> Stats:
    return summarize(values, True, 0)


def rms(values, params) -> float:
    exact = values.astype(np.float64)
    return float(np.sqrt(np.mean((exact - fake_quantize(exact, params)) ** 2)))


@given(st.lists(ARRAYS, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_statistics_do_not_depend_on_order_or_grouping(parts, random):
    forward = sum((seen(part) for part in parts), Stats())
    random.shuffle(parts)
    middle = random.randrange(len(parts) + 1)
    left = sum((seen(part) for part in parts[:middle]), Stats())
    other = left + sum((seen(part) for part in parts[middle:]), Stats())
    assert (forward.lo, forward.hi, forward.count) == (other.lo, other.hi, other.count)
    assert (forward.first, forward.exponent) == (other.first, other.exponent)
    assert np.array_equal(forward.histogram, other.histogram)


@given(ARRAYS, ARRAYS)
def test_every_element_is_in_its_bin(a, b):
    stats = seen(a) + seen(b)
    values = np.concatenate([a, b]).astype(np.float64)
    assert len(stats.histogram) <= BINS
    assert stats.edges[0] <= values.min() and values.max() < stats.edges[-1]
    index = np.searchsorted(stats.edges, values, "right") - 1
    assert np.array_equal(np.bincount(index, minlength=len(stats.histogram)), stats.histogram)


@given(ARRAYS, SPECS, st.sampled_from(sorted(CALIBRATORS)))
def test_a_grid_is_finite_holds_zero_and_stays_inside(values, spec, name):
    if spec.symmetric and not spec.signed and values.min() < 0:
        return  # such a grid cannot hold negative values; nothing asks for it
    stats = seen(values)
    params = CALIBRATORS[name]()(stats, spec)
    assert np.isfinite(params.scale) and params.scale > 0
    assert spec.qmin <= params.zero_point <= spec.qmax
    assert fake_quantize(np.zeros(1), params)[0] == 0
    # Nothing is representable beyond what was seen, but for the rounded zero point; a range that is
    # smaller than float32 can scale takes the smallest scale.
    largest = max(float(np.abs(values).max()), 2.0**-115 * 2**spec.bits)
    if values.any():
        assert max(-params.lo, params.hi) <= largest * (1 + 1e-6) + 0.51 * params.scale


@given(ARRAYS, SPECS)
@example(np.float32([0, -1]), QuantSpec(2, True, True))  # 0 alone in a bin without extent
def test_mse_loses_at_most_a_bin_more_than_minmax(values, spec):
    """Values are known up to one bin, and distance to a grid changes no faster than the value."""
    if spec.symmetric and not spec.signed:
        return
    stats = seen(values)
    chosen, full = (rms(values, entry()(stats, spec)) for entry in (MSE, MinMax))
    assert chosen <= full + 2.0**stats.exponent + 1e-6 * float(np.abs(values).max())


@given(ARRAYS, st.floats(0.51, 1.0))
def test_quantiles_are_ordered_and_clip_their_share(values, q):
    stats = seen(values)
    width = 2.0**stats.exponent
    lo, hi = quantile(stats, 1 - q), quantile(stats, q)
    assert lo <= hi
    assert np.mean(values.astype(np.float64) > hi + width) <= 1 - q + 1e-12
    assert np.mean(values.astype(np.float64) < lo - width) <= 1 - q + 1e-12


@pytest.mark.parametrize("power", [-20, 20])
@given(values=npst.arrays(np.float32, 50, elements=st.floats(-10, 10, width=32)))
def test_scaling_by_a_power_of_two_scales_the_grid(values, power):
    """Bins are powers of two: the same data in another unit gives the same codes."""
    values = np.where(np.abs(values) < 1e-6, 0, values).astype(np.float32)
    if not values.any():
        return
    spec = QuantSpec(8, False, False)
    for entry in CALIBRATORS.values():
        here, there = entry()(seen(values), spec), entry()(seen(np.ldexp(values, power)), spec)
        assert there.scale == np.ldexp(here.scale, power)
        assert there.zero_point == here.zero_point
