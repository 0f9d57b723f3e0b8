"""plan.Stats: merging is exact addition on a common histogram, whatever came first."""

import itertools

import numpy as np
import pytest

from qtool.calibration.statistics import BINS, SAMPLED, Stats, summarize

RNG = np.random.default_rng(3)


def stats(values, seed=0) -> Stats:
    return summarize(np.asarray(values, np.float32), True, seed)


def same(a: Stats, b: Stats) -> bool:
    """Equal to the last bit."""
    limits = [(part.lo, part.hi, part.first, part.exponent) for part in (a, b)]
    return limits[0] == limits[1] and np.array_equal(a.histogram, b.histogram)


PARTS = {
    "normal": RNG.normal(0, 1, 5000),
    "wide": RNG.normal(0, 300, 5000),
    "tiny": RNG.normal(0, 1e-30, 3000),
    "huge": RNG.normal(0, 1e30, 3000),
    "positive": RNG.uniform(5, 9, 4000),
    "negative": -np.abs(RNG.normal(100, 1, 4000)),
    "zero": np.zeros(10),
    "constant": np.full(7, -3.25),
    "denormal": np.full(5, 1e-42),
}


@pytest.mark.parametrize(("a", "b"), [*itertools.combinations_with_replacement(PARTS, 2)])
def test_addition_commutes(a, b):
    assert same(stats(PARTS[a]) + stats(PARTS[b]), stats(PARTS[b]) + stats(PARTS[a]))


@pytest.mark.parametrize("names", [*itertools.permutations(["normal", "wide", "tiny", "huge"], 3)])
def test_addition_is_associative(names):
    a, b, c = (stats(PARTS[name]) for name in names)
    assert same((a + b) + c, a + (b + c))


def test_any_order_of_all_parts_gives_the_same():
    parts = [stats(values) for values in PARTS.values()]
    first = sum(parts, Stats())
    for seed in range(20):
        shuffled = [parts[k] for k in np.random.default_rng(seed).permutation(len(parts))]
        assert same(sum(shuffled, Stats()), first)


@pytest.mark.parametrize("values", PARTS.values(), ids=PARTS)
def test_nothing_added_changes_nothing(values):
    assert same(stats(values) + Stats(), stats(values))
    assert same(Stats() + stats(values), stats(values))


def test_the_sum_is_the_statistics_of_the_concatenation():
    """Below SAMPLED elements nothing is left out, so they are equal; only bins may be coarser."""
    a, b = RNG.normal(0, 1, 3000), RNG.normal(2, 40, 4000)
    both, summed = stats([*a, *b]), stats(a) + stats(b)
    assert (summed.lo, summed.hi, summed.count) == (both.lo, both.hi, 7000)
    assert summed.exponent >= both.exponent
    assert same(both.coarsened(summed.exponent), summed)


@pytest.mark.parametrize("names", [*itertools.product(PARTS, PARTS)])
def test_counting_elements_is_adding_their_statistics(names):
    """In one step, without a histogram of the elements alone; also onto empty statistics."""
    first, second = (stats(PARTS[name]) for name in names)
    elements = np.asarray(PARTS[names[1]], np.float32)
    limits = float(elements.min()), float(elements.max())
    assert same(first.counting(elements, *limits), first + second)
    assert same(Stats().counting(elements, *limits), second)


def test_a_large_array_is_sampled_without_losing_its_limits():
    values = RNG.normal(0, 1, 40 * SAMPLED).astype(np.float32)
    values[123456], values[654321] = -77, 88
    seen = stats(values)
    assert (seen.lo, seen.hi) == (-77, 88)
    assert SAMPLED / 2 < seen.count <= SAMPLED * 1.1
    middles = (seen.edges[1:] + seen.edges[:-1]) / 2
    assert middles @ seen.histogram / seen.count == pytest.approx(0, abs=5 / seen.count**0.5)


def test_sampling_sees_every_channel():
    """64 channels of 64 x 64: an even stride would walk down a few columns only."""
    values = np.broadcast_to(np.arange(64)[:, None], (64, 64 * 64))
    seen = stats(values)
    levels = np.unique(np.floor(seen.edges[:-1])[seen.histogram > 0])
    assert set(levels) == set(range(64))


def test_batches_sample_other_places():
    values = RNG.normal(0, 1, 9 * SAMPLED)
    assert not same(stats(values, 1), stats(values, 2))


@pytest.mark.parametrize("more", [0, 1, 2, 5, 11, 30])
@pytest.mark.parametrize("values", PARTS.values(), ids=PARTS)
def test_coarsening_conserves_counts_and_place(values, more):
    fine = stats(values)
    coarse = fine.coarsened(fine.exponent + more)
    assert coarse.histogram.sum() == fine.histogram.sum() == len(values)
    assert coarse.exponent == fine.exponent + more
    width = 2.0**coarse.exponent
    assert fine.edges[0] - width < coarse.edges[0] <= fine.edges[0]
    assert fine.edges[-1] <= coarse.edges[-1] < fine.edges[-1] + width


def test_coarsening_past_the_range_leaves_one_bin_on_each_side_of_zero():
    coarse = stats(PARTS["normal"]).coarsened(300)
    assert coarse.first == -1
    assert coarse.histogram.tolist() == [np.sum(PARTS["normal"] < 0), np.sum(PARTS["normal"] >= 0)]


def test_coarsening_twice_is_coarsening_once():
    fine = stats(PARTS["normal"])
    once = fine.coarsened(fine.exponent + 5)
    assert same(fine.coarsened(fine.exponent + 2).coarsened(fine.exponent + 5), once)


@pytest.mark.parametrize("names", [*itertools.combinations(PARTS, 2)])
def test_every_value_lies_in_its_bin(names):
    values = np.float32(np.concatenate([PARTS[name] for name in names]))
    seen = sum((stats(PARTS[name]) for name in names), Stats())
    counts, _ = np.histogram(values.astype(np.float64), seen.edges)
    # numpy's last bin is closed, ours is open: nothing lies on its edge here.
    assert np.array_equal(counts, seen.histogram)
    assert len(seen.histogram) <= BINS


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-3, 1, 1e3, 1e30, 1e38])
def test_resolution_follows_the_range(scale):
    """At least a thousand bins up to the largest magnitude, never more than BINS."""
    values = np.float32(RNG.uniform(-1, 1, 4000) * scale)
    for part in (values, np.abs(values), -np.abs(values)):
        seen = stats(part)
        assert 900 < np.abs(part).max() / 2.0**seen.exponent < BINS / 2
        assert len(seen.histogram) <= BINS


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-30, -1e30, 3e38, 1e-45])
def test_a_constant_is_one_bin(value):
    seen = stats(np.full(100, value)) + stats(np.full(50, value))
    assert seen.histogram.tolist() == [150]
    assert seen.edges[0] <= np.float32(value) < seen.edges[-1]
    assert seen.lo == seen.hi == np.float32(value)


def test_memory_does_not_grow_with_the_count():
    seen = Stats()
    for number in range(300):
        seen = seen + stats(RNG.normal(0, 1 + number, 2000), number)
        assert len(seen.histogram) <= BINS
    assert seen.count == 600_000
    assert seen.histogram.nbytes <= 8 * BINS


def test_without_a_histogram_limits_still_merge():
    a = summarize(np.float32([1, 4]), False, 0)
    b = summarize(np.float32([-2, 3]), False, 0)
    assert ((a + b).lo, (a + b).hi) == (-2, 4)
    assert len((a + b).histogram) == 0
    assert same(a + stats([1.0, 2.0]), stats([1.0, 2.0]) + a)


def test_an_empty_array_has_no_statistics():
    assert same(summarize(np.zeros((0, 3), np.float32), True, 0), Stats())
    assert Stats().count == 0
