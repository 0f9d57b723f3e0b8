"""Warnings about accuracies that prove nothing."""

import numpy as np

from qtool.metrics.registry import METRICS
from qtool.verification.accuracy import (
    NamedMetric,
    chance,
    measure_accuracy,
)
from qtool.verification.changes.classes import class_changes, with_classes


def test_chance_is_the_share_of_the_most_frequent_label():
    assert chance(np.repeat(np.arange(10), 10)) == 10.0
    assert chance(np.array([0] * 90 + [1] * 10)) == 90.0


def test_chance_needs_enough_labels_one_for_each_sample():
    assert chance(np.arange(19)) is None
    assert chance(np.arange(20)) == 5.0
    assert chance(None) is None
    assert chance(np.zeros((100, 2))) is None


def test_accuracy_holds_what_the_verdict_needs():
    labels = np.repeat(np.arange(8), 5)
    outputs = {name: np.eye(8)[labels] for name in ("float", "quantized")}
    top1 = NamedMetric("top1", METRICS["top1"])
    accuracy = measure_accuracy(top1, outputs, labels)
    assert (accuracy.chance, accuracy.classes, accuracy.lower_is_better) == (12.5, 8, None)
    assert measure_accuracy(NamedMetric("top5", METRICS["top5"]), outputs, labels).chance is None
    tokens = dict.fromkeys(outputs, labels[:, None])
    rate = measure_accuracy(NamedMetric("wer", METRICS["wer"]), tokens, labels[:, None])
    assert (rate.lower_is_better, rate.chance, rate.classes) == (True, None, None)


def test_classes_that_changed_are_counted_and_named():
    labels = np.array([0, 0, 0, 1, 1, 2])
    before, after = np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 2, 1, 1, 2])
    outputs = {"float": np.eye(3)[before], "quantized": np.eye(3)[after]}
    lost, gained = class_changes(outputs, labels, ["cat", "dog", "bird"])
    assert (lost.name, lost.samples, lost.lost, lost.gained) == ("cat", 3, 3, 0)
    assert lost.mistaken_for == "dog"
    assert (gained.name, gained.lost, gained.gained, gained.mistaken_for) == ("dog", 0, 1, None)
    top1 = NamedMetric("top1", METRICS["top1"])
    accuracy = with_classes(measure_accuracy(top1, outputs, labels), outputs, labels, None)
    assert accuracy.label_classes is None
    assert [each.name for each in accuracy.class_changes] == ["0", "1"]
    same = {"float": outputs["float"], "quantized": outputs["float"]}
    assert with_classes(accuracy, same, labels, ("a", "b", "c")).class_changes is None
