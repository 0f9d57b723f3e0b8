"""The expected drop: of labels drawn from the probabilities, without their noise."""

from types import SimpleNamespace

import numpy as np
import pytest

from qtool.errors import DataError
from qtool.metrics.registry import METRICS, score_outputs
from qtool.search.effects import Reference
from qtool.search.expected_drop import ClassProbabilities
from qtool.verification.accuracy import NamedMetric

RNG = np.random.default_rng(0)
TOP1 = METRICS["top1"].expected


def softmax(scores):
    raised = np.exp(scores)
    return raised / raised.sum(1, keepdims=True)


def drawn(probabilities, times):
    """Return labels drawn from each row, [times, N]."""
    edges = probabilities.cumsum(1)
    return (RNG.random((times, len(edges), 1)) > edges).sum(2).clip(max=edges.shape[1] - 1)


def test_the_known_answer():
    outputs = np.log([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    changed = np.array([[1.0, 2, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    drop, error = ClassProbabilities.of(outputs, None).drop(TOP1, changed)
    assert drop == pytest.approx(100 * (0.3 + 0) / 4)
    losses = np.array([0.3, 0, 0, 0])
    assert error == pytest.approx(100 * np.sqrt(np.sum((losses - 0.075) ** 2) + 0.25) / 4)


@pytest.mark.parametrize("name", ["top1", "top5"])
def test_it_is_the_mean_drop_of_labels_drawn_from_the_probabilities(name):
    metric = METRICS[name]
    outputs = RNG.normal(0, 2, (200, 12))
    changed = outputs + RNG.normal(0, 1, outputs.shape)
    drop, error = ClassProbabilities.of(outputs, None).drop(metric.expected, changed)
    paired = [
        100 * np.mean(metric.scores(outputs, labels) - metric.scores(changed, labels))
        for labels in drawn(softmax(outputs), 400)
    ]
    assert drop > 0 and drop == pytest.approx(np.mean(paired), abs=4 * np.std(paired) / 20)
    # Over other samples it varies less than paired hits do.
    others = RNG.normal(0, 2, (100, 200, 12))
    drops, hits = [], []
    for scores in others:
        worse = scores + RNG.normal(0, 1, scores.shape)
        labels = drawn(softmax(scores), 1)[0]
        drops.append(ClassProbabilities.of(scores, labels).drop(metric.expected, worse)[0])
        hits.append(100 * np.mean(metric.scores(scores, labels) - metric.scores(worse, labels)))
    assert np.std(drops) < 0.6 * np.std(hits)
    assert np.std(drops) == pytest.approx(error, rel=0.5)


def test_labels_calibrate_an_overconfident_network():
    scores = RNG.normal(0, 2, (4000, 10))
    labels = drawn(softmax(scores), 1)[0]
    overconfident = ClassProbabilities.of(3 * scores, labels)
    np.testing.assert_allclose(overconfident.probabilities, softmax(scores), atol=0.02)
    assert (
        np.abs(ClassProbabilities.of(3 * scores, None).probabilities - softmax(scores)).max() > 0.2
    )


@pytest.mark.parametrize(("factor", "corrected"), [(0.5, True), (0.85, False)])
def test_labels_sharpen_a_network_that_was_made_unsure_alone(factor, corrected):
    """A little too unsure is what labels of training samples show of any network."""
    scores = RNG.normal(0, 2, (4000, 10))
    labels = drawn(softmax(scores), 1)[0]
    unsure = ClassProbabilities.of(factor * scores, labels).probabilities
    expected = softmax(scores if corrected else factor * scores)
    np.testing.assert_allclose(unsure, expected, atol=0.02)


def test_a_network_that_ends_in_a_softmax_is_the_same():
    scores = RNG.normal(0, 2, (50, 6)).astype(np.float32)
    labels = drawn(softmax(scores), 1)[0]
    for given in (None, labels):
        by_scores, by_softmax = (
            ClassProbabilities.of(each, given).probabilities
            for each in (scores[:, :, None], softmax(scores))
        )
        np.testing.assert_allclose(by_scores, by_softmax, atol=1e-4)


@pytest.mark.parametrize("name", ["top1", "f1"])
def test_searches_expect_the_drop_of_an_accuracy_and_measure_others(name):
    scores, changed = RNG.normal(0, 2, (2, 60, 5))
    labels = drawn(softmax(scores), 1)[0]
    context = SimpleNamespace(outputs=lambda data: scores)
    reference = Reference(context, SimpleNamespace(labels=labels), NamedMetric(name, METRICS[name]))
    effect = reference.effect(changed)
    measured = score_outputs(METRICS[name], {"float": scores, "quantized": changed}, labels)
    expected = ClassProbabilities.of(scores, labels).drop(TOP1, changed)
    if name == "top1":
        assert (effect.drop, effect.drop_error) == expected
    else:
        assert effect.drop == measured.drop and effect.drop_error > 0


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"1 of 3 labels lie outside 0\.\.3"):
        ClassProbabilities.of(np.eye(4)[:3], np.array([0, 1, 9]))
