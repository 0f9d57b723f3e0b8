"""ACIQ: the table of the paper, and its optimality on samples of its distributions."""

import numpy as np
import pytest

from qtool.calibration.estimators.aciq import ACIQ, gaussian_factor, laplace_factor
from qtool.calibration.statistics import Stats, summarize
from qtool.quant.primitives import QuantSpec

RNG = np.random.default_rng(8)
LAPLACE = [1.86282, 2.83068, 3.89723, 5.02864, 6.20477, 7.41313, 8.64562, 9.89676]
GAUSSIAN = [1.23991, 1.71064, 2.15159, 2.55914, 2.93620, 3.28691, 3.61511, 3.92404]


def seen(values) -> Stats:
    parts = np.array_split(np.asarray(values, np.float32), 40)
    return sum((summarize(part, True, k) for k, part in enumerate(parts)), Stats())


def test_the_factors_of_the_paper():
    """Known answers for 1 to 8 bits."""
    assert [laplace_factor(bits) for bits in range(1, 9)] == pytest.approx(LAPLACE, abs=1e-5)
    assert [gaussian_factor(bits) for bits in range(1, 9)] == pytest.approx(GAUSSIAN, abs=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8, 16, 17])
def test_the_laplace_factor_is_lamberts_function(bits):
    w = laplace_factor(bits)
    assert w + np.log(w) == pytest.approx(np.log(3) + bits * np.log(4), rel=1e-14)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_a_gaussian_is_clipped_about_its_mean(bits, mean):
    stats = seen(RNG.normal(mean, 2, 400_000))
    params = ACIQ(distribution="gaussian")(stats, QuantSpec(bits, False, False))
    width = float(params.hi - params.lo)
    assert width == pytest.approx(2 * 2 * GAUSSIAN[bits - 1], rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_laplace_distribution_is_clipped(bits):
    stats = seen(RNG.laplace(0, 1.5, 400_000))
    params = ACIQ(distribution="laplace")(stats, QuantSpec(bits, False, False))
    assert float(params.hi - params.lo) == pytest.approx(2 * 1.5 * LAPLACE[bits - 1], rel=0.02)


@pytest.mark.parametrize("zeros", [0, 400_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_rectified_values_have_one_bit_more_whatever_the_share_of_zeros(zeros, sign):
    spec = QuantSpec(3, False, False)
    values = sign * np.append(np.abs(RNG.laplace(0, 1, 400_000)), np.zeros(zeros))
    params = ACIQ(distribution="laplace")(seen(values), spec)
    assert float(params.hi - params.lo) == pytest.approx(LAPLACE[3], rel=0.02)
    values = sign * np.append(np.abs(RNG.normal(0, 1, 400_000)), np.zeros(zeros))
    params = ACIQ(distribution="gaussian")(seen(values), spec)
    assert float(params.hi - params.lo) == pytest.approx(GAUSSIAN[3], rel=0.02)


@pytest.mark.parametrize(("name", "draw"), [("gaussian", RNG.normal), ("laplace", RNG.laplace)])
def test_auto_recognizes_the_distribution(name, draw):
    stats, spec = seen(draw(0, 1, 200_000)), QuantSpec(4, False, False)
    chosen, expected = ACIQ()(stats, spec), ACIQ(distribution=name)(stats, spec)
    assert chosen.scale == expected.scale


def test_values_that_were_not_sampled_do_not_break_it():
    """The histogram has only zeros; the limits saw an outlier."""
    zeros = np.array([10])
    for lo, hi in ((0.0, 5.0), (-5.0, 0.0), (-5.0, 5.0)):
        params = ACIQ()(Stats(lo, hi, zeros, 0, -5), QuantSpec(4, False, False))
        assert np.isfinite(params.scale) and params.scale > 0
