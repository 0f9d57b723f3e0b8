"""The size of the codes of weights after Huffman coding, which an unpacker of one's own could use.

Source: Han et al. 2016, "Deep Compression", sec. 4, arXiv:1510.00149.
"""

import heapq
from collections.abc import Mapping

import numpy as np

from qtool.quant.chunked import PIECE
from qtool.quant.plan import QuantPlan


def huffman_lengths(counts: np.ndarray) -> np.ndarray:
    """Return the code length in bits of each symbol; 1 where there is one symbol alone.

    Args:
        counts: how often each symbol occurs, positive [k].
    """
    lengths = np.zeros(len(counts), np.int64)
    if len(counts) == 1:
        return lengths + 1
    heap = [(int(count), index, [index]) for index, count in enumerate(counts)]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        lengths[members] += 1
        heapq.heappush(heap, (first[0] + second[0], first[1], members))
    return lengths


def huffman_bytes(plan: QuantPlan, weights: Mapping[str, object]) -> int:
    """Return the bytes of the codes of all weights, a Huffman code for each layer.

    Each layer has a table of its symbols, the code and its length, with the width of the codes'
    type and one byte; scales, biases and the graph are not counted.

    Args:
        plan: frozen.
        weights: names of the weights.
    """
    total = 0
    for name in weights:
        codes = plan.codes.get(name)
        if codes is None or not codes.size:
            continue
        counts = _counts(codes)
        bits = int((huffman_lengths(counts) * counts).sum())
        total += -(-bits // 8) + len(counts) * (codes.itemsize + 1)
    return total


def _counts(codes: np.ndarray) -> np.ndarray:
    """Return how often each code that occurs does so, in ascending order of the codes."""
    flat, low = codes.reshape(-1), int(codes.min())
    counts = np.zeros(int(codes.max()) - low + 1, np.int64)
    for start in range(0, flat.size, PIECE):  # sorting all codes is ten times slower
        part = flat[start : start + PIECE].astype(np.int64) - low
        counts += np.bincount(part, minlength=len(counts))
    return counts[counts > 0]
