"""Differences between preprocessings that are reported, and those that may be chance."""

from qtool.metrics.preprocessing_scores import PreprocessingCheck, PreprocessingScore


def score(hits, samples=64):
    return PreprocessingScore("a", "{}", tuple(k < hits for k in range(samples)))


def test_a_large_difference_is_reported():
    check = PreprocessingCheck(score(2), (score(54), score(40)))
    assert check.better is check.others[0] and check.samples == 64
    assert check.others[0].accuracy == 84.375


def test_small_and_doubtful_differences_are_not():
    assert PreprocessingCheck(score(54), (score(58),)).better is None  # 6 points
    assert PreprocessingCheck(score(54), (score(54),)).better is None
    assert PreprocessingCheck(score(54)).better is None
    assert PreprocessingCheck(score(1, 8), (score(4, 8),)).better is None  # 3 of 8 samples
    mixed = PreprocessingScore("b", "{}", tuple(k >= 20 for k in range(64)))
    assert PreprocessingCheck(score(32), (mixed,)).better is None  # 32 gained, 20 lost
