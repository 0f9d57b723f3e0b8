"""Averages of single samples: exact sums, and a moving average that composes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.calibration.extremes import Extremes
from qtool.calibration.statistics import Stats, summarize

LIMITS = st.floats(-(2.0**100), 2.0**100, width=32)
SAMPLES = st.lists(st.tuples(LIMITS, LIMITS).map(sorted), min_size=1, max_size=12)


def of(samples, smoothing=0.1) -> Extremes:
    low, high = np.float32(samples).T
    return Extremes.of(low, high, smoothing)


@given(SAMPLES, SAMPLES, SAMPLES)
def test_sums_merge_exactly_in_any_order(a, b, c):
    parts = [of(a), of(b), of(c)]
    whole = of([*a, *b, *c])
    for x, y, z in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged = parts[x] + (parts[y] + parts[z])
        assert (merged.samples, merged.low_sum) == (whole.samples, whole.low_sum)
        assert merged.mean == whole.mean


@given(SAMPLES, SAMPLES, SAMPLES)
def test_the_moving_average_is_associative_in_the_order_of_samples(a, b, c):
    left, right = (of(a) + of(b)) + of(c), of(a) + (of(b) + of(c))
    whole = of([*a, *b, *c])
    size = max(abs(v) for part in (a, b, c) for pair in part for v in pair)
    for x, y, z in zip(left.moving, right.moving, whole.moving, strict=True):
        assert x == pytest.approx(y, rel=0, abs=1e-12 * size)
        assert x == pytest.approx(z, rel=0, abs=1e-12 * size)


@given(SAMPLES, st.floats(0.001, 1))
def test_the_moving_average_is_the_recursion(samples, constant):
    expected = np.float64(np.float32(samples[0]))
    for sample in samples[1:]:
        expected = (1 - constant) * expected + constant * np.float64(np.float32(sample))
    size = max(abs(v) for pair in samples for v in pair)
    assert of(samples, constant).moving == pytest.approx(tuple(expected), abs=1e-12 * size)


def test_the_order_of_samples_matters_only_for_the_moving_average():
    forward, backward = of([(0, 1), (0, 2), (0, 3)]), of([(0, 3), (0, 2), (0, 1)])
    assert forward.mean == backward.mean == (0, 2)
    assert forward.moving[1] == pytest.approx(1.29) and backward.moving[1] == pytest.approx(2.71)


def test_nothing_added_changes_nothing():
    some = of([(-1, 2), (-3, 10)])
    assert some + Extremes() == Extremes() + some == some | Extremes() == Extremes() | some == some


def test_two_values_on_one_grid_are_covered():
    """A constant has one sample, an activation many: counts do not weigh."""
    activation, constant = of([(-1, 2), (-3, 10)]), of([(-5, 1)])
    both = activation | constant
    assert both.mean == (-5, 6)
    assert both.moving == pytest.approx((-5, 2.8))


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_the_batch_does_not_matter(rows):
    data = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(np.float32)
    parts = (summarize(data[k : k + rows], True, 0, rows) for k in range(0, 8, rows))
    seen = sum(parts, Stats()).extremes
    each = data.reshape(8, -1).astype(np.float64)
    assert seen.samples == 8
    assert seen.mean == pytest.approx((each.min(1).mean(), each.max(1).mean()), rel=1e-15)


@pytest.mark.parametrize(
    ("shape", "samples"), [((6, 4), 3), ((12, 2), 3), ((4, 9), 1), ((), 1), ((0, 3), 0)]
)
def test_rows_of_an_array_are_samples_where_they_divide_it(shape, samples):
    """Tokens of 3 samples on one axis are 3 samples; an axis of 4 is none of them."""
    assert summarize(np.ones(shape, np.float32), False, 0, 3).extremes.samples == samples
