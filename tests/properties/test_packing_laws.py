"""Packing loses nothing: every width, shape and odd length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from widened import book, grid, widened

from qtool.emitters import packing
from qtool.emitters.packing import GROUP, pack, pack_trits, planes, unpack, unpack_trits

SHAPES = arrays.array_shapes(max_dims=4, max_side=9)


@st.composite
def narrow(draw, lo=1, hi=7):
    """(width, codes of that width as they are drawn, of any shape)."""
    width = draw(st.integers(lo, hi))
    codes = arrays.arrays(np.int64, draw(SHAPES), elements=st.integers(0, (1 << width) - 1))
    return width, draw(codes)


@given(narrow())
def test_unpack_is_the_inverse_of_pack(case):
    width, codes = case
    joined = np.zeros(codes.size + -codes.size % GROUP, np.int64)
    stored = pack(codes, width)
    for (bits, at), packed in zip(planes(width), stored, strict=True):
        assert packed.dtype == np.uint8
        joined |= unpack(packed, bits).reshape(-1) << at
    np.testing.assert_array_equal(joined[: codes.size], codes.reshape(-1))
    assert not joined[codes.size :].any()
    assert sum(p.size for p in stored) == -(-codes.size // GROUP) * width


@given(arrays.arrays(np.int64, SHAPES, elements=st.integers(0, 2)))
def test_unpack_trits_is_the_inverse_of_pack_trits(codes):
    packed = pack_trits(codes)
    assert packed.size == -(-codes.size // 5) and packed.max() < 3**5
    indices = unpack_trits(packed).reshape(-1)
    np.testing.assert_array_equal(indices[: codes.size], codes.reshape(-1))


@st.composite
def on_grids(draw):
    """(codes, grid): uniform, or a code book of drawn levels."""
    shape, size = draw(SHAPES), draw(st.integers(1, 40))
    if draw(st.booleans()):
        every = st.lists(st.integers(-128, 127), min_size=size, max_size=size, unique=True)
        levels = sorted(draw(every))
        return draw(arrays.arrays(np.int8, shape, elements=st.sampled_from(levels))), book(levels)
    params = grid(draw(st.integers(2, 8)), draw(st.booleans()), draw(st.booleans()))
    spec = params.spec
    codes = arrays.arrays(spec.container, shape, elements=st.integers(spec.qmin, spec.qmax))
    return draw(codes), params


@pytest.fixture(autouse=True)
def everything_is_packed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "NODE", 0)
        yield


@given(on_grids(), st.sets(st.sampled_from(["int4", "int2", "bytes", "base3"])), st.booleans())
@settings(deadline=None)
def test_the_runtime_finds_the_codes_again(case, forms, tables):
    codes, params = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TABLES", 1e9 * tables)
        got = widened(codes, params, tuple(sorted(forms)))
    assert got.dtype == codes.dtype
    np.testing.assert_array_equal(got, codes)
