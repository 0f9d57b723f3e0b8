"""Errors on many grids at once against rounding on each, and pieces against all rows at once."""

import numpy as np
import pytest

from qtool.quant.primitives import (
    PerBlock,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantSpec,
    fake_quantize,
    params_from_range,
)
from qtool.weights import range_factors
from qtool.weights.grouping import as_rows
from qtool.weights.range_factors import pieces, rounding_errors

FACTORS = np.array([1.0, 0.8, 0.55, 0.3, 0.05])
GRANULARITIES = (PerTensor(), PerChannel(0), PerChannel(1), PerBlock(0, 5), PerBlock(1, 7))


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize(
    ("bits", "signed", "symmetric"),
    [
        (2, True, True),
        (4, True, True),
        (4, False, False),
        (7, True, False),
        (8, True, True),
    ],
)
def test_errors_are_those_of_rounding_on_each_grid(monkeypatch, sort, bits, signed, symmetric):
    monkeypatch.setattr(range_factors, "SORTED_FROM", 1 if sort else 1 << 30)
    monkeypatch.setattr(range_factors, "PER_CODE", 0)
    rng = np.random.default_rng(bits)
    rows = rng.standard_t(4, (6, 300)).astype(np.float32).astype(np.float64)
    rows[1] *= 1e-30  # squares vanish in float32
    rows[2, 100:] = np.nan  # a short row
    rows[3] = 0
    spec = QuantSpec(bits, signed, symmetric)
    lo, hi = np.nanmin(rows, 1)[:, None], np.nanmax(rows, 1)[:, None]
    grids = params_from_range(FACTORS * lo, FACTORS * hi, spec)
    errors = rounding_errors(rows, grids)
    for k, row in enumerate(rows):
        x = row[~np.isnan(row)]
        for j in range(len(FACTORS)):
            one = QuantParams(spec, grids.scale[k, j], grids.zero_point[k, j])
            exact = float(((fake_quantize(x, one) - x) ** 2).sum())
            assert errors[k, j] == pytest.approx(exact, rel=1e-4, abs=1e-9 * float(x @ x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_pieces_are_all_rows_in_order(monkeypatch, granularity):
    for name, size in (("SMALL_PIECE", 40), ("PIECE", 100), ("ROWS", 2)):
        monkeypatch.setattr(range_factors, name, size)
    weight = np.arange(13 * 11 * 3, dtype=np.float32).reshape(13, 11, 3)
    spec = QuantSpec(4, True, True, granularity)
    parts = list(pieces(weight, spec))
    assert len(parts) > 1 or granularity == PerTensor()
    np.testing.assert_array_equal(np.concatenate(parts), as_rows(weight, spec))
