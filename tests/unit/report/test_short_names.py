"""Names in a report: what is cut is what they share."""

import re

import pytest

from qtool.report.names import short_names, shorten

# Name -> the parts that tell it from the others.
BLOCKS = {"/stem/stem.0/Conv": "stem", "/head/Gemm": "head"} | {
    f"/blocks/blocks.{k}/{kind}/{kind}.0/Conv": f"{k}/{kind}"
    for k in (0, 2, 13)
    for kind in ("depthwise", "pointwise")
}
ENCODER = {
    f"/bert/encoder/layer.{k}/attention/self/{part}/MatMul": f"{k}/{part}"
    for k in (0, 1, 11)
    for part in ("query", "key", "value")
}


def test_names_that_fit_stay_as_they_are():
    assert short_names(list(BLOCKS), 60) == list(BLOCKS)
    assert short_names([], 16) == []


@pytest.mark.parametrize("width", [16, 22, 29])
@pytest.mark.parametrize("names", [BLOCKS, ENCODER], ids=["convolutions", "encoder"])
def test_the_parts_in_which_names_differ_stay(names, width):
    short = short_names(list(names), width)
    assert max(map(len, short)) <= width and len(set(short)) == len(names)
    for parts, text in zip(names.values(), short, strict=True):
        assert set(parts.split("/")) <= set(re.split(r"[/.…]", text))


def test_a_number_behind_another_word_is_another_number():
    names = [f"/features/features.{k}/conv/conv.2/Conv" for k in (1, 16, 2)]
    short = short_names(names, 30)
    assert short == [f"…features.{k}/conv/conv.2/Conv" for k in (1, 16, 2)]
    assert short_names(names, 16) == ["…1/conv…", "…16/conv…", "…2/conv…"]


def test_values_of_a_sweep_keep_their_keys():
    runs = [f"bits.weights={k},calibrate.count=16,evaluate.count=16" for k in (6, 8)]
    assert short_names(runs, 16) == ["…weights=6…", "…weights=8…"]


@pytest.mark.parametrize("names", [["a" * 40], ["/" * 40], ["a" * 40, "b" * 40]])
def test_a_long_word_is_cut_in_the_middle(names):
    assert short_names(names, 16) == [shorten(name, 16) for name in names]


def test_equal_names_and_parts_of_others_end():
    names = ["/a/bbbbbbbbbbbbbbbbbbbb/c", "/a/bbbbbbbbbbbbbbbbbbbb/c", "/a/bbbbbbbbbbbbbbbbbbbb"]
    assert all(len(text) <= 12 for text in short_names(names, 12))
