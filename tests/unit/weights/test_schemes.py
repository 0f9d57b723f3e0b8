"""Weight schemes: known answers of the papers, and laws that hold for every entry."""

import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.quant.primitives import (
    Codebook,
    PerBlock,
    PerChannel,
    PerTensor,
    QuantSpec,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
)
from qtool.weights import SCHEMES, Binary, KMeans, Ternary, Uniform
from qtool.weights.grouping import as_rows, from_rows, scale_shape
from qtool.weights.kmeans import lloyd
from qtool.weights.scheme import WeightScheme

GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerBlock(1, 4)]


def spec(bits: int, granularity=PerChannel(0)) -> QuantSpec:  # noqa: B008
    return QuantSpec(bits, True, True, granularity)


def made(name: str, weight: np.ndarray, granularity, bits: int = 4):
    """The grid and the codes, rounded where the scheme leaves rounding to freeze."""
    grid, codes = SCHEMES[name]()(weight, spec(SCHEMES[name].fixed_bits or bits, granularity))
    return grid, quantize(weight, grid) if codes is None else codes


@pytest.mark.parametrize("name", SCHEMES)
def test_every_entry_fulfils_the_protocol(name):
    """``fixed_bits`` is the number of values as bits; ``level_bits`` bounds the container."""
    entry = SCHEMES[name]
    parameters = inspect.signature(WeightScheme.__call__).parameters
    assert list(inspect.signature(entry.__call__).parameters) == list(parameters)
    assert entry.fixed_bits is None or isinstance(entry.fixed_bits, int)
    scheme: WeightScheme = entry()
    weight = np.random.default_rng(4).normal(size=(2, 200))
    for bits in (3, 5) if entry.fixed_bits is None else (entry.fixed_bits,):
        for level_bits, widest in ((8, 1), (16, 2)):
            grid, codes = scheme(weight, spec(bits), level_bits)
            codes = quantize(weight, grid) if codes is None else codes
            assert bits - 1 < np.log2(len(np.unique(codes))) <= bits
            assert codes.shape == weight.shape and grid.container.itemsize <= widest


def test_only_one_scheme_has_one_bit():
    assert [name for name, entry in SCHEMES.items() if entry.fixed_bits == 1] == ["binary"]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_laws_of_every_scheme(name, granularity):
    weight = np.random.default_rng(0).normal(size=(6, 10, 3)).astype(np.float32)
    weight[2] = 0
    grid, codes = made(name, weight, granularity)
    assert codes.shape == weight.shape
    assert grid.scale.shape == scale_shape(weight, grid.spec) == grid.zero_point.shape
    assert (
        grid.scale.dtype == np.float32 and np.isfinite(grid.scale).all() and (grid.scale > 0).all()
    )
    allowed = (
        grid.levels if isinstance(grid, Codebook) else range(grid.spec.qmin, grid.spec.qmax + 1)
    )
    assert set(np.unique(codes)) <= set(map(int, allowed))
    assert len(list(allowed)) <= 2**grid.spec.bits
    values = dequantize(codes.astype(np.float64), grid)
    # Better than no weights at all, and the zero channel stays (almost) zero.
    assert ((values - weight) ** 2).sum() < (weight**2).sum()
    if isinstance(granularity, PerChannel) and granularity.axis == 0:
        assert np.abs(values[2]).max() < 1e-30
    again, same = made(name, weight, granularity)
    assert np.array_equal(same, codes) and np.array_equal(again.scale, grid.scale)


@pytest.mark.parametrize("name", ["uniform", "kmeans", "ternary"])
def test_a_scheme_keeps_signs_symmetric(name):
    weight = np.random.default_rng(1).normal(size=(3, 40))
    grid, codes = made(name, weight, PerChannel(0))
    mirrored, negative = made(name, -weight, PerChannel(0))
    values = dequantize(codes.astype(np.float64), grid)
    np.testing.assert_allclose(
        dequantize(negative.astype(np.float64), mirrored), -values, atol=1e-6
    )


@pytest.mark.parametrize(
    ("bits", "clip", "error"),
    [(2, 1.2240, 0.190174), (3, 1.9523, 0.046860), (4, 2.4739, 0.0128894)],
)
def test_uniform_finds_the_known_optimum_of_a_gaussian(bits, clip, error):
    weight = np.random.default_rng(2).normal(size=(1, 400_000))
    grid, _ = Uniform()(weight, spec(bits))
    assert float(grid.hi[0]) == pytest.approx(clip, abs=0.06)
    assert ((fake_quantize(weight, grid) - weight) ** 2).mean() == pytest.approx(error, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**31), st.sampled_from(GRANULARITIES))
def test_uniform_is_never_worse_than_the_full_range(bits, seed, granularity):
    weight = np.random.default_rng(seed).standard_t(2, size=(4, 12))
    grid, _ = Uniform()(weight, spec(bits, granularity))
    rows, shape = as_rows(weight, grid.spec), grid.scale.shape
    limits = np.fmin.reduce(rows, 1).reshape(shape), np.fmax.reduce(rows, 1).reshape(shape)
    full = params_from_range(*limits, grid.spec)

    def errors(params):
        return np.nansum((as_rows(fake_quantize(weight, params) - weight, grid.spec)) ** 2, 1)

    assert (errors(grid) <= errors(full) * (1 + 1e-9) + 1e-12).all()


def test_uniform_at_8_bits_keeps_the_full_range():
    weight = np.array([[1.27, -0.5], [-2.54, 0.1]])
    grid, _ = Uniform()(weight, spec(8))
    np.testing.assert_allclose(grid.scale, [0.01, 0.02], rtol=1e-6)


def test_kmeans_of_the_paper():
    weight = np.array(
        [
            [2.09, -0.98, 1.48, 0.09],
            [0.05, -0.14, -1.08, 2.12],
            [-0.91, 1.92, 0, -1.03],
            [1.87, 0, 1.53, 1.49],
        ]
    )
    grid, codes = KMeans()(weight, spec(2, PerTensor()), 16)
    np.testing.assert_allclose(grid.levels * grid.scale, [-1.0, 0.0, 1.5, 2.0], atol=1e-4)
    assert np.searchsorted(grid.levels, codes)[0].tolist() == [3, 0, 2, 1]
    assert grid.container == np.int16


def test_kmeans_with_values_to_spare_is_exact():
    weight = np.array([[0.5, -0.25, 0.5, 1.0]])
    grid, codes = KMeans()(weight, spec(2), 16)
    np.testing.assert_allclose(dequantize(codes.astype(np.float64), grid), weight, atol=1e-4)


def test_lloyd_never_loses():
    x, mass = np.random.default_rng(3).normal(size=500), np.ones(500)

    def distortion(centroids):
        return (np.abs(x[:, None] - centroids[None]).min(1) ** 2).sum()

    errors = [distortion(lloyd(x, mass, 8, n)) for n in range(1, 30)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(errors))


def test_integer_code_books_fit_int8():
    weight = np.random.default_rng(4).normal(size=(8, 90))
    grid, codes = KMeans()(weight, spec(4))
    assert grid.container == np.int8 and np.abs(grid.levels).max() <= 127
    assert len(grid.levels) <= 16 and codes.dtype == np.int8
    uniform, _ = Uniform()(weight, spec(4))
    error = ((dequantize(codes.astype(np.float64), grid) - weight) ** 2).sum()
    assert error < ((fake_quantize(weight, uniform) - weight) ** 2).sum()


def test_binary_of_the_paper():
    weight = np.array([0.5, -1.5, 2.0, -1.0])
    grid, codes = Binary()(weight, spec(1, PerTensor()))
    assert float(grid.scale) == 1.25 and codes.tolist() == [1, -1, 1, -1]
    assert ((codes * grid.scale - weight) ** 2).sum() == pytest.approx(1.25)
    for other in (1.2, 1.3):  # any other scale gives more
        assert ((codes * other - weight) ** 2).sum() > 1.25


def test_sign_of_zero_is_positive():
    _, codes = Binary()(np.array([0.0, -0.0, 1.0]), spec(1, PerTensor()))
    assert codes.tolist() == [1, 1, 1]


@pytest.mark.parametrize("exact", [False, True])
def test_ternary_of_the_paper(exact):
    grid, codes = Ternary(exact=exact)(np.array([0.1, -0.2, 0.6, -0.9]), spec(2, PerTensor()))
    assert float(grid.scale) == pytest.approx(0.75) and codes.tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize("granularity", GRANULARITIES[:2], ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_that_fill_up_a_kernel_do_not_count_in_scales(name, granularity):
    weight = np.random.default_rng(5).normal(size=(6, 3, 5))
    padded = np.pad(weight, ((0, 0), (0, 1), (0, 0)))
    grids = [made(name, array, granularity)[0] for array in (weight, padded)]
    np.testing.assert_allclose(grids[1].scale, grids[0].scale, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_exact_ternary_is_the_best_of_all_thresholds(seed):
    weight = np.random.default_rng(seed).standard_t(3, size=12)
    grid, codes = Ternary(exact=True)(weight, spec(2, PerTensor()))
    error = ((codes * float(grid.scale) - weight) ** 2).sum()
    for k in range(1, 13):
        keep = np.abs(weight) >= np.sort(np.abs(weight))[-k]
        mean = np.abs(weight[keep]).mean()
        assert error <= ((np.sign(weight) * keep * mean - weight) ** 2).sum() + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3)),
    st.sampled_from([*GRANULARITIES, PerBlock(0, 3), PerChannel(2)]),
)
def test_rows_come_back(shape, granularity):
    weight = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    requested = spec(4, granularity)
    rows = as_rows(weight, requested)
    assert len(rows) == max(int(np.prod(scale_shape(weight, requested))), 1)
    assert np.array_equal(from_rows(rows, weight, requested), weight)
