"""Reshape weights to rows that share a scale, and back."""

from typing import Any

import numpy as np

from qtool.quant.primitives import PerBlock, PerChannel, PerTensor, QuantSpec


def as_rows(weight: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """Return the weights as float64 [scales, weights per scale].

    Short blocks at the end of an axis are filled with NaN.
    """
    granularity = spec.granularity
    wide = weight.astype(np.float64)
    if isinstance(granularity, PerTensor):
        return wide.reshape(1, -1)
    if isinstance(granularity, PerChannel):
        return np.moveaxis(wide, granularity.axis, 0).reshape(weight.shape[granularity.axis], -1)
    axis, size = granularity.axis % weight.ndim, granularity.size
    blocks = -(-weight.shape[axis] // size)
    fill = [(0, 0)] * weight.ndim
    fill[axis] = (0, blocks * size - weight.shape[axis])
    padded = np.pad(wide, fill, constant_values=np.nan)
    shape = (*weight.shape[:axis], blocks, size, *weight.shape[axis + 1 :])
    return np.moveaxis(padded.reshape(shape), axis + 1, -1).reshape(-1, size)


def counted_positions(rows: Any) -> Any:
    """Return which positions of the rows count in statistics, such as a mean magnitude.

    Those that are 0 in every row fill up a kernel: a padded channel, or a kernel in whole blocks.

    Args:
        rows: array or tensor [scales, weights per scale]; where all of it is 0, all count.

    Returns:
        bool [weights per scale].
    """
    counted = (rows != 0).any(0)
    return counted | ~counted.any()


def scale_shape(weight: np.ndarray, spec: QuantSpec) -> tuple[int, ...]:
    """Return the shape of the scale of a weight."""
    granularity = spec.granularity
    if isinstance(granularity, PerTensor):
        return ()
    if isinstance(granularity, PerChannel):
        return (weight.shape[granularity.axis],)
    shape = list(weight.shape)
    shape[granularity.axis] = -(-shape[granularity.axis] // granularity.size)
    return tuple(shape)


def from_rows(rows: np.ndarray, weight: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """Return rows in the shape of the weights: the inverse of :func:`as_rows`, for any type."""
    granularity = spec.granularity
    if isinstance(granularity, PerTensor):
        return rows.reshape(weight.shape)
    if isinstance(granularity, PerChannel):
        axis = granularity.axis % weight.ndim
        rest = [n for a, n in enumerate(weight.shape) if a != axis]
        return np.moveaxis(rows.reshape(weight.shape[axis], *rest), 0, axis)
    return _from_blocks(rows, weight.shape, granularity)


def _from_blocks(rows: np.ndarray, shape: tuple[int, ...], granularity: PerBlock) -> np.ndarray:
    axis, size = granularity.axis % len(shape), granularity.size
    blocks = -(-shape[axis] // size)
    parts = rows.reshape(*shape[:axis], blocks, *shape[axis + 1 :], size)
    whole = np.moveaxis(parts, -1, axis + 1)
    merged = whole.reshape(*shape[:axis], blocks * size, *shape[axis + 1 :])
    return merged.take(range(shape[axis]), axis)
