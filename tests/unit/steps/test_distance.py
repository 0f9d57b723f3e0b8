"""The distance to the float output: known values, and zero for equal outputs."""

import numpy as np
import pytest

from qtool.steps.distance import distance, distances


def test_equal_outputs_have_distance_0():
    rng = np.random.default_rng(0)
    for shape in ((5, 10), (5, 1), (5,), (5, 3, 4, 4)):
        outputs = rng.normal(size=shape)
        assert distance(outputs, outputs) == 0


def test_class_scores_are_compared_by_the_divergence_of_their_softmax():
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
    reference, outputs = np.log([[3.0, 1.0]]), np.zeros((1, 2))
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert distance(reference, outputs) == pytest.approx(expected)
    # A constant added to all scores changes no probability.
    assert distance(reference + 7, outputs - 3) == pytest.approx(expected)


def test_probabilities_are_compared_as_they_are():
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert distance(np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]])) == pytest.approx(expected)


def test_other_outputs_are_compared_by_their_relative_squared_error():
    reference = np.array([[2.0], [2.0]])
    assert distance(reference, np.array([[1.0], [2.0]])) == pytest.approx(0.5 / 4)
    assert distance(np.zeros((2, 1)), np.ones((2, 1))) == 1
    assert distances(reference, np.array([[1.0], [2.0]])) == pytest.approx([1 / 4, 0])
