"""Squared rounding errors of weights on many grids at once, at the speed of memory.

Two ways with the same result: rows that are long compared with the number of codes are sorted, and
sums between the limits of codes come from cumulative sums; short rows are rounded on each grid.
"""

from collections.abc import Iterator

import numpy as np

from qtool.quant.primitives import PerChannel, PerTensor, QuantParams, QuantSpec
from qtool.weights.grouping import as_rows

# Elements of one piece of short rows: with 80 grids for each it stays in the processor's cache.
SMALL_PIECE = 1 << 15
# Elements of one piece of long rows, and rows from which a strided read uses whole cache lines.
PIECE, ROWS = 1 << 20, 64
# Elements of a row, and of a row for each code, from which sorting is faster than rounding on each
# of 80 grids.
SORTED_FROM, PER_CODE = 256, 60


def pieces(weight: np.ndarray, spec: QuantSpec) -> Iterator[np.ndarray]:
    """Yield rows that share a scale, float64 [some rows, weights per scale], a few at a time.

    Together they are the rows of ``as_rows``, in order.
    """
    granularity = spec.granularity
    if isinstance(granularity, PerTensor) or weight.size <= SMALL_PIECE:
        yield as_rows(weight, spec)
        return
    axis, unit = granularity.axis % weight.ndim, 1
    if not isinstance(granularity, PerChannel):
        axis, unit = 0, granularity.size if axis == 0 else 1
    each = weight.size // weight.shape[axis]
    size = max(SMALL_PIECE, min(ROWS * each, PIECE))
    length = max(size // each // unit, 1) * unit
    for start in range(0, weight.shape[axis], length):
        index = (slice(None),) * axis + (slice(start, start + length),)
        yield as_rows(weight[index], spec)


def rounding_errors(rows: np.ndarray, grids: QuantParams) -> np.ndarray:
    """Compute the squared error of each row on each of its grids, float64 [rows, grids].

    Args:
        rows: float64 [rows, weights per scale]; NaN fills a row that is shorter.
        grids: scale and zero point [rows, grids].
    """
    spec = grids.spec
    scale, zero = grids.scale.astype(np.float64), grids.zero_point
    if rows.shape[1] >= max(SORTED_FROM, PER_CODE * (spec.qmax - spec.qmin + 1)):
        return _sorted(rows, scale, zero, spec)
    # In units of the largest weight, so that squares of tiny ones do not vanish in float32.
    largest = np.nanmax(np.abs(rows), 1)
    unit = np.where(largest > 0, largest, 1.0)[:, None]
    return _rounded(rows / unit, scale / unit, zero, spec) * unit**2


def _sorted(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """Return the squared error of rows on each grid, [rows, grids], from sums between limits.

    sum of (x - v)^2 over the x that are rounded to v = sum x^2 - 2 v sum x + v^2 count
    """
    # Weights are float32, which sorts twice as fast. NaN comes last.
    x = np.sort(rows.astype(np.float32), 1).astype(np.float64)
    total = np.cumsum(np.pad(x, ((0, 0), (1, 0))), 1)
    codes = np.arange(spec.qmin, spec.qmax + 1) - zero[..., None]
    limits = (codes[..., :-1] + 0.5) * scale[..., None]
    edges = np.zeros((*zero.shape, codes.shape[2] + 1), np.int64)
    for k, row in enumerate(x):
        edges[k, :, 1:-1] = np.searchsorted(row, limits[k])
        edges[k, :, -1] = row.searchsorted(np.nan)
    reached = np.take_along_axis(total, edges.reshape(len(x), -1), 1).reshape(edges.shape)
    values = codes * scale[..., None]
    sums, counts = np.diff(reached), np.diff(edges)
    squares = np.nansum(x * x, 1)[:, None]
    return np.asarray(squares + (values * (values * counts - 2 * sums)).sum(2))


def _rounded(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """Return the squared error of rows on each grid, [rows, grids], by rounding on each grid."""
    # Rows along the last axis: inner loops are long, however short the rows.
    x = np.ascontiguousarray(np.nan_to_num(rows).T, np.float32)
    steps, zeros = (np.ascontiguousarray(each.T, np.float32) for each in (scale, zero))
    low, high = spec.qmin - zeros, spec.qmax - zeros
    near = np.empty_like(x)
    errors = np.empty(scale.shape)
    for k, step in enumerate(steps):
        np.divide(x, step, out=near)
        np.rint(near, out=near)
        np.maximum(near, low[k], out=near)
        np.minimum(near, high[k], out=near)
        near *= step
        near -= x
        errors[:, k] = np.einsum("ij,ij->j", near, near)
    return errors
