"""Masks by known answers: magnitude in one layer and over several, N:M, the cubic schedule."""

import itertools

import numpy as np
import pytest
from models import Net

from qtool.errors import RecipeError
from qtool.graph.queries import nodes_by_name
from qtool.pruning.gradual import GradualPruning, cubic
from qtool.pruning.magnitude import Magnitude
from qtool.pruning.masks import Pattern, n_of_m, smallest_removed
from qtool.pruning.method import PrunedLayer, pruned_layers

RNG = np.random.default_rng(0)


def test_the_smallest_magnitudes_are_removed():
    scores = np.abs(np.array([[3.0, -1.0, 0.5], [-0.1, 2.0, 1.0]]))
    expected = [[True, True, False], [False, True, True]]
    np.testing.assert_array_equal(smallest_removed(scores, 1 / 3), expected)
    # of equal scores the first goes: -1.0 before 1.0
    expected = [[True, False, False], [False, True, True]]
    np.testing.assert_array_equal(smallest_removed(scores, 0.5), expected)
    assert smallest_removed(scores, 0.0).all()


def test_one_limit_for_all_layers_divides_by_the_root_mean_square():
    weights = {"a": np.array([1.0, -1.0, 1.0, 1.0]), "b": np.array([10.0, 0.1, -0.2, 10.0])}
    masks = Magnitude(scope="global").masks(weights, {"a": 0.25, "b": 0.25})
    assert masks["a"].all()  # each is its layer's root mean square
    np.testing.assert_array_equal(masks["b"], [True, False, False, True])
    apart = Magnitude(scope="global").masks(weights, {"a": 0.25, "b": 0.5})
    assert [int((~apart[name]).sum()) for name in "ab"] == [1, 2]  # each limit of its own


def test_two_of_four_along_the_input_channels():
    scores = np.array([[0.1, 0.4, 0.2, 0.3, 9.0, 8.0, 7.0, 6.0]])
    expected = np.array([[0, 1, 0, 1, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(n_of_m(scores, Pattern(2, 4), 1), expected)
    np.testing.assert_array_equal(n_of_m(scores.T, Pattern(2, 4), 0), expected.T)
    kernel = RNG.normal(size=(5, 8, 3, 3))
    mask = n_of_m(np.abs(kernel), Pattern(1, 4), 1)
    groups = np.moveaxis(mask, 1, -1).reshape(-1, 4)
    assert (groups.sum(1) == 1).all()
    largest = np.abs(np.moveaxis(kernel, 1, -1)).reshape(-1, 4)
    assert (largest.max(1) == largest[groups]).all()


def three_layers():
    net = Net()
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 8, name="stem")
    x = net.conv(x, 8, 8, name="body")
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.output(net.add("Gemm", x, net.weight(8, 5), name="head", out="y")).model()


def test_layers_that_n_m_does_not_divide_stay_dense_and_are_named():
    layers, dense = pruned_layers(three_layers(), {}, 0.5, Pattern(2, 4))
    assert [layer.node.name for layer in layers] == ["body", "head"] and dense == ["stem"]
    # The input channels of a Gemm without transB lie along axis 0.
    mask = layers[1].mask(np.abs(RNG.normal(size=(8, 5))))
    assert (mask.reshape(2, 4, 5).sum(1) == 2).all()
    with pytest.raises(RecipeError, match=r'3:7: found no layer .* such as "stem"'):
        pruned_layers(three_layers(), {}, 0.5, Pattern(3, 7))
    with pytest.raises(RecipeError, match="no layer with weights is left"):
        pruned_layers(three_layers(), dict.fromkeys(("stem", "body", "head"), 0.0), 0.5)


def test_a_layer_has_its_own_sparsity():
    model = three_layers()
    layers, _ = pruned_layers(model, {"stem": 0.0, "head": 0.9}, 0.5)
    assert {x.node.name: x.sparsity for x in layers} == {"body": 0.5, "head": 0.9}
    node = nodes_by_name(model.graph)["head"]
    assert (~PrunedLayer(node, 0.9).mask(RNG.normal(size=(8, 5)))).sum() == 36


def test_the_cubic_schedule_has_the_values_of_the_paper():
    assert [cubic(t) for t in (0, 0.5, 1, 2)] == [0, 0.875, 1, 1]
    # s_f = 0.8, a quarter of the way: 0.8 (1 - 0.75^3) = 0.4625
    assert 0.8 * cubic(0.25) == pytest.approx(0.4625)
    weights = {"w": RNG.normal(size=1000)}
    schedule = GradualPruning(Magnitude(), {"w": 0.8}, 3)
    masks = [schedule(weights, share)["w"] for share in (0, 0.25, 0.5, 1)]
    assert [int((~mask).sum()) for mask in masks] == [0, 462, 700, 800]
    for earlier, later in itertools.pairwise(masks):
        assert not (later & ~earlier).any()
