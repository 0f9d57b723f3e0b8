"""Stack the outputs of many batches, in memory or in a temporary file."""

import os
import tempfile
from collections.abc import Iterable

import numpy as np

from qtool.errors import UnsupportedError
from qtool.runtime.memory import Quota

# Bytes of outputs that stay in memory, and the share of the run's memory limit that they may fill.
MEMORY_LIMIT, SHARE = 512 << 20, 0.5


def stack_rows(parts: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Return arrays one below the other; as a mapped file where memory has no room for them.

    Args:
        parts: equal dtypes, and equal shapes but for the first axis.
        count: rows of all parts together.

    Raises:
        UnsupportedError: an output has not one row for each sample, or rows differ in shape.
    """
    rows, done = None, 0
    for part in parts:
        if rows is None:
            rows = _empty((count, *part.shape[1:]), part.dtype)
        if part.shape[1:] != rows.shape[1:] or done + len(part) > count:
            raise _not_by_sample(part.shape, rows.shape, done)
        rows[done : done + len(part)] = part
        done += len(part)
    if rows is None or done < count:
        raise UnsupportedError(
            f"the first output has {done} rows on {count} samples; expected one for each: the "
            "batch must be its first axis, and no size 0"
        )
    return rows


def _not_by_sample(part: tuple[int, ...], rows: tuple[int, ...], done: int) -> UnsupportedError:
    return UnsupportedError(
        f"the first output has shape {list(part)} behind {done} rows of shape {list(rows[1:])}, "
        f"expected {rows[0]} rows for as many samples; the batch must be its first axis"
    )


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if Quota(MEMORY_LIMIT, SHARE).reserve(size):
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="qtool-") as file:  # it lives as long as it is mapped
        # Writing to a page that the disk has no room for would be a bus error.
        os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+", shape=shape)
