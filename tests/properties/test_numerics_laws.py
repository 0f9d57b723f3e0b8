"""Laws that every grid obeys, on drawn grids and values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtool.quant.primitives import (
    PerBlock,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantSpec,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    round_half_away,
    round_half_even,
    round_half_up,
)

ROWS, COLUMNS = 3, 10
GRID_SHAPES = {PerTensor(): (), PerChannel(0): (3,), PerChannel(1): (10,), PerBlock(1, 4): (3, 3)}
ROUNDINGS = [round_half_even, round_half_away, round_half_up]

# Beyond 1e30 sums of a float32 network overflow anyway; below 1e-30 the smallest scale takes over.
limits = st.floats(1e-30, 1e30) | st.floats(0.01, 10) | st.just(0.0)
specs = st.builds(
    QuantSpec,
    bits=st.integers(2, 16),
    signed=st.booleans(),
    symmetric=st.booleans(),
    granularity=st.sampled_from(list(GRID_SHAPES)),
)


@st.composite
def grids(draw, specs=specs):
    """A grid found from drawn limits, one pair for each scale."""
    spec = draw(specs)
    shape = GRID_SHAPES[spec.granularity]
    count = int(np.prod(shape))
    lo, hi = (
        np.reshape(draw(st.lists(limits, min_size=count, max_size=count)), shape) for _ in range(2)
    )
    return params_from_range(-lo, hi, spec)


@st.composite
def cases(draw, specs=specs):
    """(grid, x [ROWS, COLUMNS]): values inside, outside and exactly between two codes."""
    params = draw(grids(specs))
    spec = params.spec
    steps = np.array(
        draw(
            st.lists(
                st.floats(-0.25, 1.25) | st.integers(0, 4).map(lambda k: k / 4),
                min_size=ROWS * COLUMNS,
                max_size=ROWS * COLUMNS,
            )
        )
    ).reshape(ROWS, COLUMNS)
    codes = spec.qmin + steps * (spec.qmax - spec.qmin)
    between = draw(st.booleans())
    codes = np.floor(codes) + 0.5 if between else codes
    return params, dequantize(codes.astype(np.float32), params)


def spread(params: QuantParams, array: np.ndarray) -> np.ndarray:
    """``array``, of the scale's shape, for each of the ROWS x COLUMNS values."""
    if isinstance(params.spec.granularity, PerChannel):
        return np.broadcast_to(
            array[:, None] if params.spec.granularity.axis == 0 else array, (ROWS, COLUMNS)
        )
    if isinstance(params.spec.granularity, PerBlock):
        return array[:, np.arange(COLUMNS) // params.spec.granularity.size]
    return np.broadcast_to(array, (ROWS, COLUMNS))


@given(cases(), st.sampled_from(ROUNDINGS))
def test_codes_are_integers_of_the_grid(case, rounding):
    params, x = case
    codes = quantize(x, params, rounding)
    assert codes.dtype == np.float32
    assert (codes == np.rint(codes)).all()
    assert params.spec.qmin <= codes.min() and codes.max() <= params.spec.qmax


@given(cases())
def test_a_second_time_changes_nothing(case):
    params, x = case
    once = fake_quantize(x, params)
    assert fake_quantize(once, params).tobytes() == once.tobytes()
    codes = quantize(x, params)
    assert (quantize(dequantize(codes, params), params) == codes).all()


@given(grids())
def test_every_code_survives_the_way_back_and_forth(params):
    spec = params.spec
    for code in (spec.qmin, spec.qmin + 1, (spec.qmin + spec.qmax) // 2, spec.qmax - 1, spec.qmax):
        codes = np.full((ROWS, COLUMNS), code, np.float32)
        assert (quantize(dequantize(codes, params), params) == codes).all()


@given(cases(), st.sampled_from(ROUNDINGS), st.floats(0, 3, width=32))
def test_rounding_is_monotonic(case, rounding, steps):
    params, x = case
    y = x + np.float32(steps) * spread(params, params.scale)
    assert (quantize(x, params, rounding) <= quantize(y, params, rounding)).all()
    assert (fake_quantize(x, params) <= fake_quantize(y, params)).all()


@given(grids())
def test_zero_is_exact(params):
    zero = np.zeros((ROWS, COLUMNS), np.float32)
    assert (quantize(zero, params) == spread(params, params.zero_point)).all()
    assert (fake_quantize(zero, params) == 0).all()


@given(cases(), st.sampled_from(ROUNDINGS))
def test_inside_the_grid_the_error_is_at_most_half_a_step(case, rounding):
    params, x = case
    lo, hi, step = (spread(params, array) for array in (params.lo, params.hi, params.scale))
    inside = (lo <= x) & (x <= hi)
    error = abs(dequantize(quantize(x, params, rounding), params).astype(np.float64) - x)
    # float32 division and product: three roundings of a value of at most 2^bits steps
    slack = 3 * 2.0**-24 * 2**params.spec.bits
    assert (error <= step * (0.5 + slack))[inside].all()


@given(cases())
def test_outside_the_grid_the_nearest_end_is_taken(case):
    params, x = case
    codes = quantize(x, params)
    step = spread(params, params.scale)
    assert (codes[x > spread(params, params.hi) + step] == params.spec.qmax).all()
    assert (codes[x < spread(params, params.lo) - step] == params.spec.qmin).all()


@given(cases(), st.sampled_from(ROUNDINGS), st.sampled_from([np.float32, np.float64]))
def test_numpy_and_torch_agree_bit_for_bit(case, rounding, dtype):
    params, x = case
    x = x.astype(dtype)
    codes, other = quantize(x, params, rounding), quantize(torch.tensor(x), params, rounding)
    assert codes.dtype == other.numpy().dtype == dtype
    assert (codes == other.numpy()).all()
    values, others = dequantize(codes, params), dequantize(other, params).numpy()
    assert values.tobytes() == others.tobytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@given(cases(), st.sampled_from(ROUNDINGS))
def test_the_gpu_agrees_bit_for_bit(case, rounding):
    params, x = case
    codes = quantize(torch.tensor(x, device="cuda"), params, rounding)
    assert (quantize(x, params, rounding) == codes.cpu().numpy()).all()
    values = dequantize(codes, params).cpu().numpy()
    assert values.tobytes() == dequantize(quantize(x, params, rounding), params).tobytes()


symmetric = st.builds(
    QuantSpec,
    bits=st.integers(2, 16),
    signed=st.just(True),
    symmetric=st.just(True),
    granularity=st.sampled_from(list(GRID_SHAPES)),
)


@given(cases(symmetric), st.sampled_from([round_half_even, round_half_away]))
def test_symmetric_grids_mirror(case, rounding):
    params, x = case
    assert (quantize(-x, params, rounding) == -quantize(x, params, rounding)).all()


@given(grids())
def test_a_grid_is_sound_and_follows_from_its_range(params):
    assert np.isfinite(params.scale).all() and (params.scale > 0).all()
    assert ((params.spec.qmin <= params.zero_point) & (params.zero_point <= params.spec.qmax)).all()
    again = params_from_range(params.lo, params.hi, params.spec)
    assert (again.zero_point == params.zero_point).all()


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_a_scale_for_each_row_beats_one_for_all(bits, seed):
    rows = 10.0 ** np.arange(-2, 2)  # unequal norms
    weight = np.random.default_rng(seed).normal(size=(4, 64)) * rows[:, None]

    def error(granularity, axis):
        spec = QuantSpec(bits, True, True, granularity)
        params = params_from_range(weight.min(axis), weight.max(axis), spec)
        return ((fake_quantize(weight, params) - weight) ** 2).sum()

    assert error(PerChannel(0), 1) <= error(PerTensor(), None)
