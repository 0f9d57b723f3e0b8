"""Large arrays a few rows at a time: rounding needs several times the memory of what it rounds."""

from collections.abc import Iterator
from dataclasses import replace
from types import EllipsisType
from typing import TypeVar

import numpy as np

from qtool.quant.primitives import PerBlock, PerChannel, QuantParams, quantize

Grid = TypeVar("Grid", bound=QuantParams)

# Elements of one piece; an array that has fewer is one piece.
PIECE = 1 << 24


def pieces(array: np.ndarray, params: Grid) -> Iterator[tuple[slice | EllipsisType, Grid]]:
    """Rows of an array, together all of them, each with the grid of those rows.

    Args:
        array: any shape; rows are along axis 0.
        params: its grid.

    Yields:
        An index (``...`` for everything) and the grid as of that part alone.
    """
    if array.ndim == 0 or array.size <= PIECE:
        yield ..., params
        return
    granularity, unit = params.spec.granularity, 1
    along = isinstance(granularity, PerBlock)
    if isinstance(granularity, PerChannel | PerBlock) and granularity.axis % array.ndim == 0:
        along, unit = True, getattr(granularity, "size", 1)
    rows = max(PIECE * len(array) // array.size // unit, 1) * unit
    for start in range(0, len(array), rows):
        stop = min(start + rows, len(array))
        part = slice(start // unit, -(-stop // unit))
        grid = params
        if along:
            grid = replace(params, scale=params.scale[part], zero_point=params.zero_point[part])
        yield slice(start, stop), grid


def codes_of(array: np.ndarray, params: QuantParams) -> np.ndarray:
    """Codes of an array in their container; holds only a few rows of it as floats at a time."""
    codes = np.empty(array.shape, params.container)
    for part, grid in pieces(array, params):
        codes[part] = quantize(array[part], grid)
    return codes
