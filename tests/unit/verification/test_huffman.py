"""Huffman codes of weights: optimal lengths, and the bytes that the report states."""

import numpy as np
import pytest

from qtool.quant.plan import QuantPlan
from qtool.verification.huffman import huffman_bytes, huffman_lengths

RNG = np.random.default_rng(2)


def test_known_lengths():
    assert huffman_lengths(np.array([8, 4, 2, 1, 1])).tolist() == [1, 2, 3, 4, 4]
    assert huffman_lengths(np.array([7])).tolist() == [1]
    assert sorted(huffman_lengths(np.array([5, 5, 5, 5])).tolist()) == [2, 2, 2, 2]


@pytest.mark.parametrize("count", [2, 5, 16, 200])
def test_the_lengths_are_a_prefix_code_within_a_bit_of_the_entropy(count):
    counts = RNG.integers(1, 1000, count)
    lengths, shares = huffman_lengths(counts), counts / counts.sum()
    assert (2.0**-lengths).sum() == pytest.approx(1)
    entropy = -(shares * np.log2(shares)).sum()
    assert entropy <= (lengths * shares).sum() < entropy + 1


def test_bytes_are_those_of_the_codes_and_of_a_table_for_each_layer():
    codes = np.array([0] * 8 + [1] * 4 + [-1] * 2 + [2] + [3], np.int8)
    plan = QuantPlan(codes={"a": codes, "b": np.zeros(16, np.int16)})
    # 8 + 8 + 6 + 4 + 4 = 30 bits and 5 symbols of 2 bytes; 16 bits and one symbol of 3 bytes.
    assert huffman_bytes(plan, {"a": 0, "b": 0, "float": 0}) == 4 + 10 + 2 + 3
