"""Warnings about accuracies that prove nothing."""

import numpy as np

from qtool.verification.accuracy import at_chance


def test_at_chance_compares_with_most_frequent_label():
    labels = np.repeat(np.arange(10), 10)
    assert at_chance({"float": 10.0}, labels)
    assert not at_chance({"float": 11.0}, labels)
    # Nine of ten samples are of one class: always naming it gives 90 %.
    uneven = np.array([0] * 90 + [1] * 10)
    assert at_chance({"float": 90.0}, uneven) and not at_chance({"float": 91.0}, uneven)


def test_at_chance_needs_enough_labels():
    assert not at_chance({"float": 0.0}, np.arange(10))
    assert not at_chance({"float": 0.0}, None)
    assert not at_chance({}, np.zeros(100))
