"""Calibrators: known answers, options, and the laws that every entry of the table obeys."""

import inspect
from statistics import NormalDist

import numpy as np
import pytest
from pydantic import ValidationError

from qtool.calibration import (
    ACIQ,
    CALIBRATORS,
    MSE,
    BatchNorm,
    Entropy,
    Histogram,
    KthValue,
    MinMax,
    MovingAverage,
    Percentile,
)
from qtool.calibration.estimators.percentile import quantile
from qtool.calibration.histogram_error import squared_error
from qtool.calibration.statistics import Calibrator, Stats, summarize
from qtool.quant.primitives import QuantSpec, fake_quantize, params_from_range

RNG = np.random.default_rng(5)
UINT8 = QuantSpec(8, False, False)
DATA = {
    "normal": RNG.normal(0.5, 1, 15_000),
    "rectified": np.maximum(RNG.normal(0, 1, 15_000), 0),
    "rectified with outliers": np.append(np.maximum(RNG.normal(0, 1, 12_000), 0), [90.0, 100.0]),
    "negative": -np.abs(RNG.normal(0, 3, 15_000)) - 1,
    "uniform": RNG.uniform(2, 3, 15_000),
    "heavy": RNG.standard_t(2, 15_000),
    "small": RNG.normal(0, 1e-30, 5000),
    "large": RNG.normal(0, 1e30, 5000),
    "constant": np.full(100, 2.5),
    "zero": np.zeros(100),
    "two": np.array([-1e-3, 1e3]),
}
SPECS = {
    f"{'int' if signed else 'uint'}{bits}{' symmetric' if symmetric else ''}": QuantSpec(
        bits, signed, symmetric
    )
    for bits in (2, 4, 8, 16)
    for signed, symmetric in ((False, False), (True, False), (True, True))
}


def seen(values) -> Stats:
    return summarize(np.asarray(values, np.float32), True, 0)


def error(values, params) -> float:
    values = np.asarray(values, np.float32).astype(np.float64)
    return float(np.mean((values - fake_quantize(values, params)) ** 2))


@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_entry_fulfils_the_protocol(name):
    """It says whether it reads the histogram: an entry that does not is the same without one."""
    calibrator: Calibrator = CALIBRATORS[name]()
    assert isinstance(CALIBRATORS[name].needs_histogram, bool)
    parameters = inspect.signature(Calibrator.__call__).parameters
    assert list(inspect.signature(CALIBRATORS[name].__call__).parameters) == list(parameters)
    stats = seen(DATA["heavy"])
    full, limits = calibrator(stats, UINT8), calibrator(Stats(stats.lo, stats.hi), UINT8)
    assert (full.scale != limits.scale) == calibrator.needs_histogram


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("values", DATA.values(), ids=DATA)
@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_obeys_the_laws(name, values, spec):
    """Finite; zero exact; the range within what was seen, widened to zero; pure.

    `batchnorm` may be wider where the network states a distribution; here it does not.
    """
    stats = seen(values)
    if refused(name, spec):
        return
    counts = stats.histogram.copy()
    params = CALIBRATORS[name]()(stats, spec)
    assert params.spec == spec
    assert params.scale.dtype == np.float32 and params.scale.shape == ()
    assert np.isfinite(params.scale) and params.scale > 0
    assert spec.qmin <= params.zero_point <= spec.qmax
    assert fake_quantize(np.zeros(1), params)[0] == 0
    lo, hi = min(stats.lo, 0.0), max(stats.hi, 0.0)
    if lo < hi:
        lo, hi = (-max(-lo, hi), max(-lo, hi)) if spec.symmetric else (lo, hi)
        # The zero point is rounded, which shifts both ends by up to half a step.
        slack = 0.51 * float(params.scale)
        assert params.lo >= lo - slack and params.hi <= hi + slack
    again = CALIBRATORS[name]()(stats, spec)
    assert (again.scale, again.zero_point) == (params.scale, params.zero_point)
    assert np.array_equal(stats.histogram, counts)


def refused(name: str, spec: QuantSpec) -> bool:
    """Whether an entry is not defined for a grid; its call then says the same as `supports`."""
    calibrator = CALIBRATORS[name]()
    try:
        calibrator.supports(spec)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            calibrator(seen(DATA["heavy"]), spec)
        assert name in str(error) and f"found {spec.bits}" in str(error)
        return True
    return False


def test_only_entropy_is_limited_in_its_widths():
    specs = [QuantSpec(bits, True, True) for bits in range(2, 17)]
    limited = {name for name in CALIBRATORS for spec in specs if refused(name, spec)}
    assert limited == {"entropy"}


ORDERED = {"moving_average"}


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("name", CALIBRATORS)
def test_shares_merge_to_the_same_bytes(name, bits):
    """Any grouping of the samples gives the same grid, and any order where order has no meaning."""
    samples = np.random.default_rng(1).standard_t(3, (12, 700)).astype(np.float32)
    parts = [summarize(sample, True, 0) for sample in samples]
    spec, calibrator = QuantSpec(bits, False, False), CALIBRATORS[name]()
    want = calibrator(sum(parts, Stats()), spec)
    shares = [sum(parts[:5], Stats()), sum(parts[5:7], Stats()), sum(parts[7:], Stats())]
    merged = [shares[0] + (shares[1] + shares[2])]
    if name not in ORDERED:
        merged += [shares[2] + shares[0] + shares[1], sum(reversed(parts), Stats())]
    for stats in merged:
        grid = calibrator(stats, spec)
        if name in ORDERED:  # float64 sums in another grouping
            assert float(grid.scale) == pytest.approx(float(want.scale), rel=1e-6)
        else:
            assert (grid.scale, grid.zero_point) == (want.scale, want.zero_point)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_does_without_a_histogram(name):
    """A computed constant is summarized by its limits when only they are needed."""
    params = CALIBRATORS[name]()(Stats(-1.0, 3.0), UINT8)
    assert (params.lo, params.hi) == pytest.approx((-1.003922, 2.996078), abs=1e-6)


def test_minmax_keeps_everything():
    """Known answer: batches [-1, 2] and [-3, 10] give (-3, 10)."""
    stats = seen([-1, 2]) + seen([-3, 10])
    params = MinMax()(stats, UINT8)
    assert (stats.lo, stats.hi) == (-3, 10)
    assert float(params.scale) == pytest.approx(13 / 255, rel=1e-6)
    assert params.zero_point == 59  # 3 / (13 / 255) = 58.85


def test_percentile_is_the_kth_value():
    """Known answer: 0..9999 at q = 0.999 is the 9991st value, 9990, up to one bin."""
    stats = seen(RNG.permutation(10_000))
    width = 2.0**stats.exponent
    params = Percentile(q=0.999)(stats, UINT8)
    assert float(params.hi) == pytest.approx(9990, abs=width + 0.5 * float(params.scale))
    assert quantile(stats, 0.999) == pytest.approx(9990, abs=width)
    assert quantile(stats, 0.001) == pytest.approx(9, abs=width)


@pytest.mark.parametrize("q", [0.6, 0.9, 0.99, 0.999, 0.9999, 1.0])
@pytest.mark.parametrize("values", DATA.values(), ids=DATA)
def test_percentile_clips_at_most_its_share(values, q):
    stats = seen(values)
    lo, hi = quantile(stats, 1 - q), quantile(stats, q)
    width = 2.0**stats.exponent  # limits lie inside bins: up to one bin off
    values = np.float32(values)
    assert np.mean(values > hi + width) <= 1 - q
    assert np.mean(values < lo - width) <= 1 - q


def test_percentile_at_one_is_minmax():
    for values in DATA.values():
        wide, full = Percentile(q=1.0)(seen(values), UINT8), MinMax()(seen(values), UINT8)
        assert (wide.scale, wide.zero_point) == (full.scale, full.zero_point)


def test_percentile_leaves_outliers_out():
    params = Percentile(q=0.999)(seen(DATA["rectified with outliers"]), UINT8)
    assert float(params.hi) < 5


def gaussian() -> Stats:
    """The density of N(0, 1) itself as a histogram of 4096 bins, out to 8 sigma."""
    edges = np.ldexp(np.arange(-2048.0, 1.0), -8)
    tail = np.diff([NormalDist().cdf(edge) for edge in edges])
    counts = np.rint(np.concatenate([tail, tail[::-1]]) * 1e15).astype(np.int64)
    return Stats(-8, 8, counts, -2048, -8)


@pytest.mark.parametrize(
    ("bits", "clip", "least"),
    [(2, 1.2240, 0.190174), (3, 1.9523, 0.046860), (4, 2.4739, 0.0128894), (8, 3.9205, 8.8308e-5)],
)
def test_mse_finds_the_optimum_of_a_gaussian(bits, clip, least):
    """Known answers: narrow symmetric grid; 0.02 sigma on the clip, 0.5 % on the error."""
    stats = gaussian()
    params = MSE(candidates=1000)(stats, QuantSpec(bits, True, True))
    assert float(params.hi) == pytest.approx(clip, abs=0.02)
    middle = (stats.edges[:-1] + stats.edges[1:]) / 2
    inside = np.linspace(-0.5, 0.5, 33)[:, None] * 2.0**stats.exponent + middle
    squares = ((inside - fake_quantize(inside, params)) ** 2).mean(0)
    error = float(squares @ stats.histogram) / stats.count
    assert error == pytest.approx(least, rel=0.005)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("values", DATA.values(), ids=DATA)
def test_mse_is_never_worse_than_minmax(values, bits):
    spec, stats = QuantSpec(bits, False, False), seen(values)
    chosen = error(values, MSE()(stats, spec)) ** 0.5
    full = error(values, MinMax()(stats, spec)) ** 0.5
    # A bin's values are scored at its middle: the rounding error of each is off by half a bin.
    assert chosen <= full * 1.001 + 0.01 * 2.0**stats.exponent


def test_mse_clips_rare_outliers_and_keeps_a_uniform_whole():
    rare = np.append(DATA["rectified"], [15.0])
    assert float(MSE()(seen(rare), QuantSpec(4, False, False)).hi) < 6
    uniform = RNG.uniform(0, 1, 15_000)
    assert float(MSE()(seen(uniform), UINT8).hi) == pytest.approx(1, abs=0.01)


def test_mse_moves_one_end_alone():
    """An outlier below must not cost the range above."""
    values = np.append(RNG.uniform(-1, 8, 15_000), [-60.0])
    params = MSE()(seen(values), QuantSpec(4, False, False))
    assert -25 < float(params.lo) < -1 and float(params.hi) > 6


def test_a_larger_exponent_clips_less():
    stats, spec = seen(DATA["heavy"]), QuantSpec(4, False, False)
    assert float(MSE(p=4)(stats, spec).hi) > float(MSE(p=2)(stats, spec).hi)
    assert float(MSE(p=2)(stats, spec).hi) > float(MSE(p=0.5)(stats, spec).hi)


@pytest.mark.parametrize(
    ("entry", "options", "place"),
    [
        (Percentile, {"q": 0.5}, "q"),
        (Percentile, {"q": 1.1}, "q"),
        (Percentile, {"q": float("nan")}, "q"),
        (Percentile, {"q": "much"}, "q"),
        (MSE, {"candidates": 1}, "candidates"),
        (MSE, {"candidates": 2.5}, "candidates"),
        (MSE, {"p": 0}, "p"),
        (MSE, {"p": float("inf")}, "p"),
        (MovingAverage, {"averaging_constant": 0}, "averaging_constant"),
        (KthValue, {"q": 0.4}, "q"),
        (Histogram, {"bins": 1}, "bins"),
        (Entropy, {"form": "ppq"}, "form"),
        (Entropy, {"passes": 6}, "passes"),
        (ACIQ, {"distribution": "student"}, "distribution"),
        (BatchNorm, {"deviations": -1}, "deviations"),
    ],
)
def test_bad_numbers_fail_at_construction(entry, options, place):
    with pytest.raises(ValidationError) as failure:
        entry(**options)
    assert failure.value.errors()[0]["loc"] == (place,)


def test_options_stay():
    with pytest.raises(AttributeError):
        MSE().p = 3.0


@pytest.mark.parametrize("factor", [1.0, 0.9, 0.4])
@pytest.mark.parametrize("name", ["normal", "rectified", "negative", "heavy"])
def test_the_error_of_fine_steps_is_that_of_single_codes(name, factor, monkeypatch):
    """Above 12 bits an integral over the range replaces the sum over up to 65,536 codes."""
    stats = seen(DATA[name])
    params = params_from_range(factor * stats.lo, factor * stats.hi, QuantSpec(14, False, False))
    fast = squared_error(stats)(params)
    monkeypatch.setattr("qtool.calibration.histogram_error.FINE_BITS", 16)
    assert fast == pytest.approx(squared_error(stats)(params), rel=0.02)
