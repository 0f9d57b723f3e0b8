"""Rounding a few rows at a time gives what rounding all of them gives; engines keep what fits."""

import numpy as np
import pytest
import torch

from qtool.quant import chunked
from qtool.quant.chunked import codes_of, pieces
from qtool.quant.primitives import (
    Codebook,
    PerBlock,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantSpec,
    quantize,
)
from qtool.runtime import tensor_cache

RNG = np.random.default_rng(0)
SHAPES = [
    ((7, 6), PerTensor(), ()),
    ((7, 6), PerChannel(0), (7,)),
    ((7, 6), PerChannel(1), (6,)),
    ((7, 6, 2), PerChannel(-3), (7,)),
    ((7, 6), PerBlock(0, 4), (2, 6)),
    ((7, 6), PerBlock(1, 4), (7, 2)),
    ((9,), PerChannel(0), (9,)),
    ((), PerTensor(), ()),
]


@pytest.mark.parametrize("book", [False, True])
@pytest.mark.parametrize(("shape", "granularity", "grid"), SHAPES)
def test_all_rows_with_their_grids(shape, granularity, grid, book, monkeypatch):
    monkeypatch.setattr(chunked, "PIECE", 13)
    array = RNG.normal(0, 3, shape).astype(np.float32)
    scale = RNG.uniform(0.1, 0.2, grid).astype(np.float32)
    zero = RNG.integers(-3, 4, grid).astype(np.int32)
    fields = (QuantSpec(4, True, False, granularity), scale, zero)
    params = Codebook(*fields, np.int32([-9, -2, 0, 3])) if book else QuantParams(*fields)
    out = np.full(shape, np.nan, np.float32)
    parts = list(pieces(array, params))
    for part, own in parts:
        assert type(own) is type(params)
        out[part] = quantize(array[part], own)
    codes = codes_of(array, params)
    assert codes.dtype == params.container
    np.testing.assert_array_equal(codes, out)
    np.testing.assert_array_equal(out, quantize(array, params))
    assert (len(parts) > 1) == (array.size > 13)


def test_what_does_not_fit_is_made_again(monkeypatch):
    monkeypatch.setattr(tensor_cache, "CACHE_BYTES", 100)
    made: list[str] = []

    def make(name: str, count: int):
        return lambda: made.append(name) or torch.zeros(count)

    keep = tensor_cache.TensorCache()
    for _ in range(2):
        assert keep("a", make("a", 20)).numel() == 20
        assert keep("b", make("b", 20)).numel() == 20
        assert keep("c", make("c", 5)).numel() == 5
    assert made == ["a", "b", "c", "b"]
