"""Orders of classes that a model's outputs show, and those that they do not."""

import tracemalloc

import numpy as np
import pytest

from qtool.metrics.label_order import find_label_order

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "owl", "pig")


def scores_of(classes, count=10, noise=0.0, seed=0):
    """Class scores whose highest one is ``classes``, but for a share of random ones."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(classes)) < noise
    guesses = np.where(wrong, rng.integers(0, count, len(classes)), classes)
    return np.eye(count, dtype=np.float32)[guesses]


def labels_of(count=400, classes=10):
    return np.arange(count) * classes // count  # sorted, as class folders are


def test_labels_in_the_models_order_have_no_other():
    labels = labels_of()
    assert find_label_order(scores_of(labels, noise=0.3), labels, NAMES) is None


@pytest.mark.parametrize("noise", [1.0, 0.9])
def test_a_model_at_chance_has_no_order(noise):
    labels = labels_of()
    for seed in range(20):
        assert find_label_order(scores_of(labels, noise=noise, seed=seed), labels) is None


def test_a_permutation_is_recovered_and_scored_on_other_samples():
    labels, order = labels_of(), np.random.default_rng(3).permutation(10)
    outputs = scores_of(order[labels], noise=0.3)
    result = find_label_order(outputs, labels, NAMES)
    assert result is not None and result.name == "permuted"
    assert result.order == tuple(order) and result.samples == 400
    exact = 100 * np.mean(order[labels] == outputs.argmax(1))
    assert result.relabelled == pytest.approx(exact)
    assert result.accuracy == pytest.approx(100 * np.mean(labels == outputs.argmax(1)))


def test_two_exchanged_classes_are_named():
    labels, order = labels_of(), np.arange(10)
    order[[2, 3]] = 3, 2
    result = find_label_order(scores_of(order[labels], noise=0.1), labels, NAMES)
    assert result is not None
    assert "cat is class 3, dog is class 2" in result.describe()
    assert "ant" not in result.describe()


@pytest.mark.parametrize(("shift", "words"), [(1, "shifted by 1 "), (-1, "shifted by -1")])
def test_a_shift_shows_with_one_sample_a_class(shift, words):
    labels = np.arange(1, 99)
    result = find_label_order(scores_of(labels + shift, 100, noise=0.2), labels)
    assert result is not None and result.name.startswith(words)


def test_folders_sorted_as_text_instead_of_numbers():
    names = tuple(sorted(str(k) for k in range(100)))  # 0, 1, 10, 11, ...
    labels = np.arange(100)
    outputs = scores_of(np.array([int(names[k]) for k in labels]), 100)
    result = find_label_order(outputs, labels, names)
    assert result is not None and result.name == "sorted as numbers"
    assert "10 is class 10" in result.describe()


def test_one_sample_a_class_shows_no_permutation():
    labels = np.arange(100)  # any guesses without repetition could be called a permutation
    order = np.random.default_rng(0).permutation(100)
    assert find_label_order(scores_of(order, 100), labels) is None


def test_more_classes_in_the_model_than_in_the_labels():
    labels = labels_of(200, 5)
    order = np.array([7, 2, 9, 0, 4])
    result = find_label_order(scores_of(order[labels]), labels, NAMES[:5])
    assert result is not None and result.order == tuple(order)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64"])
def test_the_type_of_the_labels_changes_nothing(dtype):
    labels, order = labels_of(), np.random.default_rng(3).permutation(300)
    outputs = scores_of(order[labels], count=300)
    result = find_label_order(outputs, labels.astype(dtype))
    assert result is not None and result == find_label_order(outputs, labels)


def test_few_labels_of_many_classes_take_little_memory():
    labels, classes = labels_of(), np.random.default_rng(3).permutation(30_000)[:10]
    outputs = np.zeros((400, 30_000), np.float32)
    outputs[np.arange(400), classes[labels]] = 1
    tracemalloc.start()
    result = find_label_order(outputs, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result is not None and result.order == tuple(classes)
    assert peak < 100e6  # an assignment of all classes takes 7 GB
