"""Optimal brain surgeon against brute force, and the moments that it shares with GPTQ."""

import numpy as np
import pytest
from contexts import calibrated
from models import Net, depthwise

from qtool.graph.queries import by_name
from qtool.pruning.layer_inputs import ColumnSets
from qtool.pruning.magnitude import Magnitude
from qtool.pruning.masks import Pattern
from qtool.pruning.method import pruned_layers
from qtool.pruning.obs import Obs, remove_weights
from qtool.pruning.wanda import Wanda

RNG = np.random.default_rng(0)
ANY = ColumnSets(np.arange(6)[:, None], 1)


def quadratic(size=6):
    """A positive definite matrix and a row of weights."""
    x = RNG.normal(size=(40, size)) @ RNG.normal(size=(size, size))
    return x.T @ x / 40, RNG.normal(size=size)


def solved(weights, hessian, mask):
    """The least-squares weights on a mask: argmin (w - v) H (w - v)' with v = 0 outside."""
    result = np.zeros(len(weights))
    result[mask] = np.linalg.solve(hessian[np.ix_(mask, mask)], (hessian @ weights)[mask])
    return result


def error(weights, pruned, hessian):
    return (weights - pruned) @ hessian @ (weights - pruned)


def brute_force(weights, hessian, count, allowed=lambda mask: True):
    """Remove one weight after the other, each time the one of least error, all of them solved."""
    mask = np.ones(len(weights), bool)
    for _ in range(count):
        trials = []
        for p in np.flatnonzero(mask):
            trial = mask.copy()
            trial[p] = False
            if allowed(trial):
                trials.append((error(weights, solved(weights, hessian, trial), hessian), p))
        mask[min(trials)[1]] = False
    return solved(weights, hessian, mask)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_it_removes_what_brute_force_removes(count):
    for _ in range(20):
        hessian, weights = quadratic()
        pruned = remove_weights(weights[None], np.linalg.inv(hessian), count, ANY)[0]
        expected = brute_force(weights, hessian, count)
        np.testing.assert_array_equal(pruned == 0, expected == 0)
        np.testing.assert_allclose(pruned, expected, rtol=1e-7, atol=1e-9)


def test_two_of_each_three_columns():
    sets = ColumnSets(np.array([[0, 2, 4], [1, 3, 5]]), 2)

    def allowed(mask):
        return mask[[0, 2, 4]].any() and mask[[1, 3, 5]].any()

    for _ in range(20):
        hessian, weights = quadratic()
        pruned = remove_weights(weights[None], np.linalg.inv(hessian), 4, sets)[0]
        np.testing.assert_allclose(
            pruned, brute_force(weights, hessian, 4, allowed), rtol=1e-7, atol=1e-9
        )


def test_weights_removed_at_once_leave_the_least_squares_solution():
    hessian, weights = quadratic(16)
    sets = ColumnSets(np.arange(16)[:, None], 1)
    pruned = remove_weights(weights[None], np.linalg.inv(hessian), 9, sets, step=4)[0]
    assert (pruned == 0).sum() == 9
    np.testing.assert_allclose(pruned, solved(weights, hessian, pruned != 0), rtol=1e-6, atol=1e-9)


def net():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 9, 9), 4, 8, name="first"))
    return net.output(net.conv(x, 8, 6, name="second", out="y"))


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
def test_outputs_stay_closer_than_by_magnitude(pattern):
    plan, context = calibrated(net(), rows=128)
    layers, _ = pruned_layers(context.model, {}, 0.5, pattern)
    losses = {}
    for method in (Magnitude(), Wanda(), Obs()):
        pruned = method(plan, layers, context)
        losses[type(method).__name__] = context.loss(pruned)
        for layer in layers:
            mask = pruned.masks[layer.weight]
            assert mask.mean() == 0.5
            assert not pruned.weight_overrides[layer.weight][~mask].any()
            if pattern is not None:
                groups = np.moveaxis(mask, 1, -1).reshape(-1, 4)
                assert (groups.sum(1) == 2).all()
    assert losses["Obs"] < 0.5 * losses["Magnitude"]


def test_wanda_compares_within_a_row_by_the_size_of_the_input():
    plan, context = calibrated(net(), rows=64)
    layers, _ = pruned_layers(context.model, {"second": 0.0}, 0.5)
    pruned = Wanda()(plan, layers, context)
    mask = pruned.masks[layers[0].weight].reshape(8, -1)
    assert (mask.sum(1) == 18).all()
    original = by_name(context.model.graph)[layers[0].weight].const_value.numpy()
    pruned_array = pruned.weight_overrides[layers[0].weight]
    rest = pruned_array != 0
    np.testing.assert_array_equal(pruned_array[rest], original[rest])


def test_rows_of_a_depthwise_layer_add_up_to_the_sparsity():
    plan, context = calibrated(depthwise(), rows=64)
    layers, _ = pruned_layers(context.model, {}, 0.5)
    pruned = Obs()(plan, layers, context)
    for layer in layers:
        mask = pruned.masks[layer.weight]
        assert abs(int((~mask).sum()) - mask.size / 2) <= 0.5
