"""Metrics against answers worked out by hand."""

import math

import numpy as np
import pytest

from qtool.errors import DataError
from qtool.metrics.confidence import share_interval
from qtool.metrics.registry import METRICS, Metric, agreement, mean, paired_interval, sqnr_db

OUTPUTS = np.array(
    [
        [0.1, 0.9, 0.0, 0.2, 0.3, 0.4],
        [0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ],
    np.float32,
)


def scores(name, outputs=OUTPUTS, labels=(1, 5, 0)):
    return METRICS[name].scores(outputs, np.asarray(labels)).tolist()


def test_top1_and_top5():
    assert scores("top1") == scores("accuracy") == [1, 0, 1]  # equal outputs: the first wins
    assert scores("top5") == [1, 0, 1]
    assert scores("top5", labels=(2, 4, 5)) == [0, 1, 0]
    assert METRICS["top1"].unit == "%"


def test_top1_is_argmax():
    rng = np.random.default_rng(0)
    outputs = rng.integers(0, 4, (200, 7)).astype(np.float32)  # many ties
    labels = rng.integers(0, 7, 200)
    expected = (outputs.argmax(axis=1) == labels).astype(float).tolist()
    assert scores("top1", outputs, labels) == expected


def test_trailing_axes_of_one_are_ignored():
    assert scores("top1", OUTPUTS[:, :, None, None]) == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "words"),
    [
        (
            "top1",
            OUTPUTS,
            [1, 6, -1],
            r"2 of 3 labels lie outside 0\.\.5 \(found -1\.\.6\).*6 classes",
        ),
        ("top1", OUTPUTS, [1, 2], r"labels have shape \[2\]; expected \[3\]"),
        ("top1", OUTPUTS, np.eye(3, 6, dtype=int), r"shape \[3, 6\].*argmax of one-hot"),
        ("top1", OUTPUTS, [0.5, 1, 2], "labels are float64; expected whole class numbers"),
        ("top1", OUTPUTS[:, :1], [0, 0, 0], r"shape \[3, 1\]; expected \[N, classes\]"),
        ("top1", np.zeros((3, 6, 2)), [0, 0, 0], r"shape \[3, 6, 2\]"),
        ("top5", OUTPUTS[:, :5], [0, 0, 0], "top5 on an output of 5 classes is always right.*top1"),
        (
            "top1",
            OUTPUTS * np.float32("nan"),
            [0, 0, 0],
            r"NaN for 3 of 3 samples \(first: row 0\)",
        ),
    ],
)
def test_what_does_not_fit_is_explained(name, outputs, labels, words):
    with pytest.raises(DataError, match=words):
        scores(name, outputs, labels)


def pair(n, b, c):
    """Scores of n samples: b right only in float, c only quantized, the rest in both."""
    first, second = np.ones(n), np.ones(n)
    second[:b] = 0
    first[b : b + c] = 0
    return first, second


def test_the_interval_is_bonett_and_price_s():
    # n = 100, b = 12, c = 4: p = 13/102, q = 5/102, d = 8/102 = 0.0784314,
    # variance (18/102 - d^2) / 102 = 0.00166978, half-width 1.959964 * 0.0408630 = 0.0800901.
    drop, lo, hi = paired_interval(*pair(100, 12, 4))
    assert drop == pytest.approx(8.0)
    assert lo == pytest.approx(-0.16587, abs=1e-4) and hi == pytest.approx(15.85215, abs=1e-4)


def test_no_change_still_has_a_width():
    drop, lo, hi = paired_interval(*pair(1000, 0, 0))
    # sqrt(2 / 1002 / 1002) * 1.96 = 0.2766 %: not "proven equal"
    assert drop == 0 and hi == pytest.approx(0.27663, abs=1e-4) and lo == pytest.approx(-hi)


def test_the_interval_turns_with_its_arguments_and_holds_the_drop():
    for n, b, c in [(1, 1, 0), (2, 2, 0), (7, 0, 7), (50, 3, 1), (10000, 20, 9)]:
        first, second = pair(n, b, c)
        drop, lo, hi = paired_interval(first, second)
        assert -100 <= lo <= drop <= hi <= 100
        assert paired_interval(second, first) == pytest.approx((-drop, -hi, -lo))


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    n, p_lost, p_won = 200, 0.04, 0.02
    covered = 0
    for _ in range(1000):
        lost, won, _same = rng.multinomial(n, [p_lost, p_won, 1 - p_lost - p_won])
        _, lo, hi = paired_interval(*pair(n, lost, won))
        covered += lo <= 2.0 <= hi
    assert 930 <= covered <= 990  # 950 expected; 3 binomial deviations are 21, and it errs wide


@pytest.mark.parametrize(
    ("hits", "n", "lo", "hi"),
    # Newcombe 1998, table I, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_the_interval_of_a_share_is_wilson_s(hits, n, lo, hi):
    assert share_interval(100 * hits / n, n) == pytest.approx((lo, hi), abs=0.005)
    mirrored = share_interval(100 * (n - hits) / n, n)
    assert mirrored == pytest.approx((100 - hi, 100 - lo), abs=0.005)


@pytest.mark.parametrize("bad", [np.zeros(0), np.array([0.5, 1.0])])
def test_the_interval_refuses_other_scores(bad):
    with pytest.raises(ValueError, match="all 0 or 1"):
        paired_interval(bad, bad)


def test_agreement_counts_equal_winners():
    other = OUTPUTS.copy()
    other[0, 2] = 5
    assert agreement(OUTPUTS, OUTPUTS) == 100
    assert agreement(OUTPUTS, other) == pytest.approx(200 / 3)
    with pytest.raises(DataError, match=r"shape \[3, 1\].*no meaning"):
        agreement(OUTPUTS[:, :1], OUTPUTS[:, :1])
    with pytest.raises(ValueError, match="shapes"):
        agreement(OUTPUTS, OUTPUTS[:2])


def test_agreement_of_sequences_is_that_of_their_steps():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(5, 7, 11))
    other = logits + 0.3 * rng.normal(size=logits.shape)
    first, second = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, other))
    expected = 100 * np.mean(first.argmax(-1) == second.argmax(-1))
    assert 50 < expected < 100
    assert agreement(first, second) == pytest.approx(expected)
    # The same with the classes on the second axis, as probabilities and as scores.
    assert agreement(*(x.swapaxes(1, 2) for x in (first, second))) == pytest.approx(expected)
    assert agreement(*(x.swapaxes(1, 2) for x in (logits, other))) == pytest.approx(expected)


def test_sqnr_in_decibels():
    reference = np.array([3.0, 4.0], np.float32)
    assert sqnr_db(reference, reference + np.float32([0.5, 0])) == pytest.approx(20.0)  # 25 / 0.25
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(reference * 0, reference) == -math.inf
    with pytest.raises(ValueError, match="shapes"):
        sqnr_db(reference, reference[:1])


@pytest.mark.parametrize("name", METRICS)
def test_an_entry_has_what_a_metric_needs(name):
    metric = METRICS[name]
    assert isinstance(metric, Metric) and metric.help and metric.unit
    assert (metric.scores is None) is not (metric.value is None)
    assert metric.total is mean or not metric.binary  # an interval of 0 / 1 scores is of their mean
    assert metric.needs_labels is not metric.reference
    assert metric.classes or not metric.class_labels


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].majority_baseline])
def test_always_naming_one_class_scores_its_share(name):
    outputs, labels = np.zeros((8, 3)), np.array([1, 1, 1, 1, 1, 0, 2, 2])
    outputs[:, 1] = 1
    assert METRICS[name].scores(outputs, labels).mean() == 5 / 8


def test_a_metric_has_scores_or_a_value_and_not_both():
    for parts in ({}, {"scores": np.add, "value": np.add}):
        with pytest.raises(TypeError, match="either scores or a value"):
            Metric("help", "%", **parts)
