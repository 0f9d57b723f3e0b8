"""What is said when the numbers mean nothing."""

import numpy as np

from qtool.verification.accuracy import at_chance


def test_a_float_model_at_chance_is_noticed():
    labels = np.repeat(np.arange(10), 10)
    assert at_chance({"float": 10.0}, labels)
    assert not at_chance({"float": 11.0}, labels)
    # Nine of ten samples are one class: 90 % is what naming it would give.
    uneven = np.array([0] * 90 + [1] * 10)
    assert at_chance({"float": 90.0}, uneven) and not at_chance({"float": 91.0}, uneven)


def test_few_samples_or_none_prove_nothing():
    assert not at_chance({"float": 0.0}, np.arange(10))
    assert not at_chance({"float": 0.0}, None)
    assert not at_chance({}, np.zeros(100))
