"""GPTQ and coordinate descent against worked numbers and against exhaustive search."""

import itertools

import numpy as np
import pytest

from qtool.ptq.second_order.coordinate_descent import coordinate_descent
from qtool.ptq.second_order.covariance import LayerMoments, Moments
from qtool.ptq.second_order.hessian_rounding import (
    Rounded,
    asymmetric_target,
    damped,
    round_with_compensation,
    row_errors,
    search_scale,
    shrinkage,
)
from qtool.quant.primitives import QuantSpec

H2 = np.array([[[1.0, 0.9], [0.9, 1.0]]])
FOUR = QuantSpec(4, signed=True, symmetric=True)


def problem(seed: int, groups: int = 1, outputs: int = 8, size: int = 24):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, size, 200)) + 2 * rng.normal(size=(groups, 1, 200))
    return rng.normal(size=(groups, outputs, size)), x @ x.swapaxes(1, 2) / 200


def nearest(target: np.ndarray, scale: np.ndarray) -> Rounded:
    return Rounded(np.rint(target / scale).clip(-7, 7), scale)


@pytest.mark.parametrize("block", [1, 2, 128])
@pytest.mark.parametrize("act_order", [True, False])
def test_the_worked_example(block, act_order):
    target, one = np.array([[[0.4, 0.4]]]), np.ones((1, 1, 1))
    result = round_with_compensation(target, H2, one, (-7, 7), act_order, block)
    assert result.codes.tolist() == [[[0, 1]]]
    assert row_errors(target - result.values, H2)[0, 0] == pytest.approx(0.088)


def test_uncorrelated_inputs_give_nearest_codes():
    target = np.array([[[0.4, 1.6, -0.7]]])
    result = round_with_compensation(target, np.eye(3)[None], np.ones((1, 1, 1)), (-7, 7))
    assert result.codes.tolist() == [[[0, 2, -1]]]


def reference(weights: np.ndarray, hessian: np.ndarray, step: float) -> np.ndarray:
    """GPTQ as the paper writes it, one matrix."""
    w, codes = weights.copy(), np.empty_like(weights)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for i in range(w.shape[1]):
        codes[:, i] = np.rint(w[:, i] / step).clip(-7, 7)
        error = (w[:, i] - codes[:, i] * step) / upper[i, i]
        w[:, i + 1 :] -= np.outer(error, upper[i, i + 1 :])
    return codes


@pytest.mark.parametrize("block", [1, 5, 24, 128])
def test_blocks_and_groups_change_nothing(block):
    weights, hessian = problem(0, groups=3)
    hessian = damped(hessian, 0.01)
    scale = np.full((3, 8, 1), 0.4)
    result = round_with_compensation(weights, hessian, scale, (-7, 7), False, block)
    want = [reference(w, h, 0.4) for w, h in zip(weights, hessian, strict=True)]
    np.testing.assert_array_equal(result.codes, want)


def test_it_beats_nearest_codes_on_nearly_all_layers():
    wins = ordered = 0
    for seed in range(100):
        weights, hessian = problem(seed)
        hessian, scale = damped(hessian, 0.01), np.full((1, 8, 1), 0.4)
        errors = [
            row_errors(weights - r.values, hessian).sum()
            for r in (
                nearest(weights, scale),
                round_with_compensation(weights, hessian, scale, (-7, 7), False),
                round_with_compensation(weights, hessian, scale, (-7, 7), True),
            )
        ]
        wins, ordered = wins + (errors[1] <= errors[0]), ordered + (errors[2] <= errors[0])
    assert min(wins, ordered) >= 95


@pytest.mark.parametrize("shared", [True, False])
def test_coordinate_descent_never_loses(shared):
    for seed in range(20):
        weights, hessian = problem(seed, groups=2)
        hessian = damped(hessian, 0.01)
        scale = search_scale(weights, hessian, FOUR, shared)
        start = round_with_compensation(weights, hessian, scale, (-7, 7))
        errors = [row_errors(weights - start.values, hessian)]
        for sweeps in (1, 3):
            result = coordinate_descent(
                start, weights, hessian, (-7, 7), sweeps, "shared" if shared else "rows"
            )
            errors.append(row_errors(weights - result.values, hessian))
            assert np.abs(result.codes).max() <= 7
            assert np.array_equal(result.codes, np.rint(result.codes))
        if shared:
            assert len(np.unique(result.scale)) == 1
            assert errors[0].sum() >= errors[1].sum() >= errors[2].sum()
        else:
            assert (errors[0] >= errors[1] - 1e-12).all()
            assert (errors[1] >= errors[2] - 1e-12).all()


def test_coordinate_descent_on_two_columns_reaches_the_best_pair():
    target, one = np.array([[[0.3, 0.3]]]), np.ones((1, 1, 1))
    start = nearest(target, one)
    errors = {
        pair: float(row_errors(target - np.array([[pair]]), H2)[0, 0])
        for pair in itertools.product((0, 1), repeat=2)
    }
    assert errors[0, 0] == pytest.approx(0.342)
    assert [errors[0, 1], errors[1, 0]] == pytest.approx([0.202, 0.202])
    # One code is 0.3 + 0.9 * 0.3 = 0.57 at its minimum: it rounds up, the other then stays.
    result = coordinate_descent(start, target, H2, (-7, 7), sweeps=1)
    assert sorted(result.codes.reshape(-1)) == [0, 1]


def test_scales_are_the_best_of_the_factors():
    weights, hessian = problem(4)
    scale = search_scale(weights, hessian, FOUR, shared=False)
    full = np.abs(weights).max(2, keepdims=True) / 7
    assert ((scale / full >= 0.3499) & (scale / full <= 1)).all()
    least = row_errors(weights - nearest(weights, scale).values, hessian)
    for factor in np.linspace(1, 0.35, 27):
        other = row_errors(weights - nearest(weights, full * factor).values, hessian)
        assert (least <= other * 1.001).all()
    one = search_scale(weights, hessian, FOUR, shared=True)
    assert len(np.unique(one)) == 1
    eight = search_scale(weights, hessian, QuantSpec(8, True, True), shared=False)
    np.testing.assert_allclose(eight, full * 7 / 127)


def test_channels_and_groups_of_zeros_stay_zero():
    weights, hessian = problem(5, groups=2)
    weights[0, 3], hessian[1] = 0, 0
    ridge = damped(hessian, 0.01)
    scale = search_scale(weights, ridge, FOUR, shared=False)
    result = round_with_compensation(weights, ridge, scale, (-7, 7))
    result = coordinate_descent(result, weights, ridge, (-7, 7))
    assert np.isfinite(result.values).all() and not result.codes[0, 3].any()
    want = nearest(weights[1:], scale[1:])
    assert row_errors(weights[1:] - result.values[1:], ridge[1:]).sum() <= (
        row_errors(weights[1:] - want.values, ridge[1:]).sum()
    )


def moments(x_float: np.ndarray, x: np.ndarray, weights: np.ndarray) -> Moments:
    rows = x.shape[1]
    a, b = (each - each.mean(1, keepdims=True) for each in (x_float, x))
    hessian, cross = (left.swapaxes(1, 2) @ b / rows for left in (b, a))
    return Moments(rows, x_float.mean(1), x.mean(1), hessian, weights @ (cross - hessian))


def test_the_asymmetric_target_undoes_a_gain_and_a_mixture():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5000, 6))
    mixed = x @ (np.eye(6) + 0.3 * rng.normal(size=(6, 6)))
    weights = rng.normal(size=(1, 4, 6))
    target = asymmetric_target(weights, moments(x, mixed, weights), 1e-9)
    np.testing.assert_allclose(mixed @ target.swapaxes(1, 2), x @ weights.swapaxes(1, 2), atol=1e-5)
    same = asymmetric_target(weights, moments(x, x, weights), 0.01)
    np.testing.assert_allclose(same, weights, atol=1e-12)


@pytest.mark.parametrize(("rows", "low", "high"), [(20000, 0.95, 1.0), (30, 0.0, 0.5)])
def test_cross_validation_trusts_many_rows_and_not_few(rows, low, high):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(1, 4, 20))
    x = rng.normal(size=(1, rows, 20))
    coarse = x + 0.3 * rng.normal(size=x.shape)
    halves = [moments(x[:, k::2], coarse[:, k::2], weights) for k in (0, 1)]
    both = LayerMoments(moments(x, coarse, weights), tuple(halves))
    assert low <= shrinkage(weights, both, 0.01) <= high
    assert shrinkage(weights, LayerMoments(halves[0], tuple(halves[:1])), 0.01) == 0
