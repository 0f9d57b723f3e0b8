"""Scales as shifts and short multipliers: known answers, N2D2's rule, what snapping promises."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.calibration import MSE
from qtool.calibration.histogram_error import squared_error
from qtool.calibration.statistics import summarize
from qtool.quant.primitives import (
    PerChannel,
    QuantParams,
    QuantSpec,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
)
from qtool.quant.scale_formats import (
    N2D2_PRECISION,
    as_integers,
    ceil_log2,
    constrain_activation_scale,
    constrain_weight_scale,
    double_shift,
    fixed_point,
    floor_log2,
    neighbours,
    normalized,
    width_of,
)

KINDS = ("power_of_two", "double_shift", "fixed_point:16", "fixed_point:8")
positive = st.floats(2.0**-40, 2.0**10)
arrays = st.lists(st.floats(2.0**-20, 8.0), min_size=1, max_size=8).map(np.array)


def single_shift(alpha: np.ndarray) -> np.ndarray:
    """N2D2's k of alpha ~ 2^-k: the power below where it is precise enough, else the one above."""
    k = -floor_log2(alpha)
    return k - (np.ldexp(1.0, -k) < N2D2_PRECISION * alpha)


def test_known_answers():
    assert fixed_point(np.array(0.3), 16) == (19661, 16)
    assert abs(19661 * 2.0**-16 - 0.3) < 3.2e-6
    assert single_shift(np.array(0.0119)) == 6  # 2^-7 reaches 0.65651 of it, too little
    m, n = double_shift(np.array(0.0119))
    assert (m, n) == (7, 8)  # 0.98477 of it: accepted
    assert [int(v) for v in normalized(np.array(0.0072474273418460))] == [1992157658, 31 + 7]
    assert neighbours(np.array(0.02), "power_of_two") == (2.0**-6, 2.0**-5)


@pytest.mark.parametrize("x", [2.0**-149, 1e-30, 0.25, 0.3, 0.5, 1.0, 3.0, 2.0**20])
def test_logarithms_are_exact(x):
    low, high = int(floor_log2(np.float64(x))), int(ceil_log2(np.float64(x)))
    assert 2.0**low <= x < 2.0 ** (low + 1)
    assert 2.0 ** (high - 1) < x <= 2.0**high


@given(positive)
def test_n2d2s_shifts_reach_their_precision(alpha):
    k = int(single_shift(np.array(alpha)))
    assert N2D2_PRECISION * alpha <= 2.0**-k < 2 * alpha
    m, n = (int(v) for v in double_shift(np.array(alpha)))
    assert m <= n
    assert N2D2_PRECISION * alpha * (1 - 2.0**-15) <= 2.0**-m + 2.0**-n < 1.34 * alpha


def test_the_worst_multiplier_of_each_form():
    """Uncompensated, the nearest single shift is off by a third at 0.75, the double one by 1/7."""
    for kind, alpha, worst in (("power_of_two", 0.75, 1 / 3), ("double_shift", 1.75, 1 / 7)):
        off = [abs(float(c) / alpha - 1) for c in neighbours(np.array(alpha), kind)]
        assert min(off) == pytest.approx(worst)


@given(arrays, st.sampled_from(KINDS))
def test_neighbours_enclose_and_have_the_form(alpha, kind):
    below, above = neighbours(alpha, kind)[:2]
    unit = 2.0 ** -fixed_point(alpha, width_of(kind))[1] if width_of(kind) else 0.0
    assert np.all(below <= np.maximum(alpha, unit)) and np.all(alpha <= above * (1 + 2**-6))
    for candidate in neighbours(alpha, kind):
        assert np.array_equal(as_integers(candidate, kind).value, candidate)
        if width_of(kind):
            assert as_integers(candidate, kind).factor.max() < 2 ** (width_of(kind) - 1) - 1


@given(arrays, st.sampled_from(["float", "fixed_point:16"]), st.booleans())
def test_products_are_as_precise_as_their_bits(alpha, kind, together):
    multiplier = as_integers(alpha, kind, together=together)
    bits = width_of(kind) or 32
    # One shift for all: the error is relative to the largest. A shift each: to each.
    scale = alpha.max() if together or width_of(kind) else alpha
    near = np.abs(multiplier.value - alpha) <= scale * 2.0 ** (1.01 - bits)
    assert np.all(near | (multiplier.factor == 1))
    assert multiplier.factor.max() < 2 ** (bits - 1) and multiplier.factor.min() >= 1


@pytest.mark.parametrize("kind", ["power_of_two", "double_shift"])
def test_a_number_without_the_form_is_refused(kind):
    with pytest.raises(ValueError, match=f"do not have the form {kind}"):
        as_integers(np.array([0.5, 0.3]), kind)


def test_a_float32_multiplier_is_held_exactly():
    """So the reference multiplies by the very number that the runtime multiplies by."""
    alpha = np.random.default_rng(0).uniform(1e-6, 2, 1000).astype(np.float32).astype(np.float64)
    assert np.array_equal(as_integers(alpha, "float").value, alpha)


def weights(channels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, rng.uniform(0.01, 1, (channels, 1)), (channels, 30)).astype(np.float32)


def grid_of(weight: np.ndarray, kind: str, bits: int = 8) -> QuantParams:
    spec = QuantSpec(bits, True, True, PerChannel(0), kind)
    return params_from_range(weight.min(1), weight.max(1), spec)


def error_of(weight: np.ndarray, params: QuantParams) -> np.ndarray:
    wide = weight.astype(np.float64)
    return np.square(dequantize(quantize(wide, params), params) - wide).sum(1)


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.sampled_from([8, 4]))
def test_constrained_weights_lose_no_more_than_by_n2d2s_rule(seed, kind, bits):
    weight, ratio = weights(5, seed), 0.37
    grid = grid_of(weight, kind, bits)
    params = constrain_weight_scale(weight, grid, ratio)
    alpha = params.scale.astype(np.float64) * (ratio if width_of(kind) else 1)
    # The form, up to the float32 that holds the scale.
    assert np.allclose(as_integers(alpha, kind).value, alpha, rtol=1.2e-7, atol=0)
    scales = grid.scale.astype(np.float64)
    if kind == "power_of_two":
        rule = np.ldexp(1.0, -single_shift(scales))
    elif kind == "double_shift":
        m, n = double_shift(scales)
        rule = np.ldexp(1.0, -m) + np.ldexp(1.0, -n)
    else:
        x, p = fixed_point(scales * ratio, width_of(kind))
        rule = np.ldexp(x.astype(np.float64), -p) / ratio
    by_rule = replace(grid, scale=rule.astype(np.float32))
    assert np.all(error_of(weight, params) <= error_of(weight, by_rule) * (1 + 1e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_make_up_for_the_multiplier(kind):
    """N2D2's compensation: sums of codes times the short multiplier are the layer, rounded once.

    Weights stand still while the scale moves by up to a third; what is left is rounding of weights.
    """
    weight, ratio = weights(16, 3), 0.37
    params = constrain_weight_scale(weight, grid_of(weight, kind), ratio)
    codes = quantize(weight.astype(np.float64), params)
    alpha = as_integers(params.scale.astype(np.float64) * (ratio if width_of(kind) else 1), kind)
    back = codes * (alpha.value / (ratio if width_of(kind) else 1))[:, None]
    inside = np.abs(codes) < 127
    assert np.all((np.abs(back - weight) <= 0.501 * params.scale[:, None])[inside])
    assert inside.mean() > 0.9
    # And codes of the float scales, which nothing compensates, are not.
    before = quantize(weight.astype(np.float64), grid_of(weight, kind))
    assert np.abs(before * params.scale[:, None] - weight).max() > 1.5 * np.abs(
        back - weight
    ).max() or kind.startswith("fixed")


@pytest.mark.parametrize("kind", KINDS)
def test_asymmetric_weights_begin_where_they_began(kind):
    """uint8 weights, few of them below zero: a wider step needs another zero point."""
    weight = np.random.default_rng(0).uniform(-0.1, 1.0, (3, 40)).astype(np.float32)
    spec = QuantSpec(8, False, False, PerChannel(0), kind)
    grid = params_from_range(weight.min(1), weight.max(1), spec)
    params = constrain_weight_scale(weight, grid, 0.37)
    assert np.abs(params.lo - grid.lo).max() <= params.scale.max()
    assert np.all(error_of(weight, params) < 40 * params.scale**2)
    assert params.zero_point.dtype == np.int32


def test_a_layer_that_writes_floats_keeps_its_fixed_point_scales():
    weight = weights(4, 0)
    grid = grid_of(weight, "fixed_point:16")
    assert constrain_weight_scale(weight, grid, None) is grid
    assert constrain_weight_scale(weight, grid_of(weight, "float"), 0.5).spec.scale_kind == "float"


def test_a_multiplier_too_small_for_its_width_is_one():
    """A channel 2^-20 as large as its neighbour: x = 1, and its weights are rounded on that."""
    weight = weights(2, 1)
    weight[1] = weight[0] * 2.0**-20
    params = constrain_weight_scale(weight, grid_of(weight, "fixed_point:8"), 1.0)
    assert as_integers(params.scale.astype(np.float64), "fixed_point:8").factor.min() == 1
    assert np.isfinite(params.scale).all()


def activation(seed: int, low: float, signed: bool = False, symmetric: bool = False):
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.laplace(0.2, rng.uniform(0.1, 3), 20000), low).astype(np.float32)
    stats = summarize(values, True, 0)
    spec = QuantSpec(8, signed, symmetric, scale_kind="power_of_two")
    return stats, MSE()(stats, spec)


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, -0.7, -50.0]),
    st.sampled_from([(False, False), (True, True), (True, False)]),
)
def test_a_constrained_activation_is_never_worse_than_rounding_up(seed, low, form):
    stats, grid = activation(seed, low, *form)
    error = squared_error(stats)
    params = constrain_activation_scale(grid, error)
    assert float(np.frexp(params.scale)[0]) == 0.5
    assert params.scale.dtype == np.float32 and params.scale.ndim == 0
    up = 2.0 ** int(ceil_log2(np.float64(grid.scale)))
    zero = np.rint(grid.spec.qmin - float(grid.lo) / up)
    zero = 0 if grid.spec.symmetric else int(np.clip(zero, grid.spec.qmin, grid.spec.qmax))
    rounded = QuantParams(grid.spec, np.asarray(up, np.float32), np.asarray(zero, np.int32))
    assert error(params) <= error(rounded)
    assert params.spec.qmin <= int(params.zero_point) <= params.spec.qmax
    assert fake_quantize(np.zeros(1, np.float32), params)[0] == 0


def test_rounding_down_is_chosen_where_it_pays():
    """A scale just above a power of two: clipping a little of the tail halves the step."""
    hi = 255 * 2.0**-7 * 1.02
    values = np.clip(np.random.default_rng(0).laplace(0, 0.3, 20000), 0, hi).astype(np.float32)
    values[0] = hi
    stats = summarize(values, True, 0)
    spec = QuantSpec(8, False, False, scale_kind="power_of_two")
    grid = params_from_range(0.0, hi, spec)
    params = constrain_activation_scale(grid, squared_error(stats))
    assert params.scale == 2.0**-7 < grid.scale
    # Without a histogram nobody knows what clipping costs: nothing is clipped.
    assert constrain_activation_scale(grid, None).hi >= hi


def test_a_range_alone_is_covered():
    spec = QuantSpec(8, False, False, scale_kind="power_of_two")
    for lo, hi in ((-1.0, 3.0), (-0.001, 1.0), (-7.0, 0.0)):
        params = constrain_activation_scale(params_from_range(lo, hi, spec), None)
        assert params.lo <= lo + params.scale / 2 and params.hi >= hi - params.scale / 2
