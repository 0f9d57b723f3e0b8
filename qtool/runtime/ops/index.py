"""Gather and scatter by index, masks."""

import math

import torch

from qtool.runtime.tensors import DTYPES, Op, T, number

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_end(indices: T, size: int) -> T:
    """Replace negative indices, which count from the end, by positive ones."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def gather(x: T, indices: T, *, axis: int = 0) -> T:
    """Select slices of an axis by index."""
    axis %= x.dim()
    places = _from_end(indices, x.shape[axis])
    if places.dim() == 1:
        return x.index_select(axis, places)
    y = x.index_select(axis, places.reshape(-1))
    return y.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def gather_elements(x: T, indices: T, *, axis: int = 0) -> T:
    """Select one element of an axis for each index."""
    return x.gather(axis, _from_end(indices, x.shape[axis]))


def _linear(indices: T, sizes: torch.Size) -> T:
    """Convert index vectors (last axis) to positions in the flattened leading axes."""
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i in range(indices.shape[-1]):
        flat = flat * sizes[i] + _from_end(indices[..., i], sizes[i])
    return flat


def gather_nd(x: T, indices: T, *, batch_dims: int = 0) -> T:
    """Select slices by index vectors (the last axis of ``indices``)."""
    depth, batch = indices.shape[-1], list(x.shape[:batch_dims])
    count = math.prod(batch)
    rest = list(x.shape[batch_dims + depth :])
    flat = x.reshape(count, -1, *rest)
    places = _linear(indices, x.shape[batch_dims:]).reshape(count, -1)
    picked = flat[torch.arange(count, device=x.device).unsqueeze(1), places]
    return picked.reshape([*indices.shape[:-1], *rest])


def scatter_elements(x: T, indices: T, updates: T, *, axis: int = 0, reduction: str = "none") -> T:
    """Replace single elements of ``x``, or reduce them with the updates."""
    places = _from_end(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCE[reduction], include_self=True)


def scatter_nd(x: T, indices: T, updates: T, *, reduction: str = "none") -> T:
    """Replace slices of ``x``, or reduce them with the updates."""
    depth = indices.shape[-1]
    rest = x.shape[depth:]
    width = math.prod(rest)
    flat = x.reshape(-1, width)
    places = _linear(indices, x.shape[:depth]).reshape(-1, 1).expand(-1, width)
    new = updates.reshape(-1, width)
    if reduction == "none":
        return flat.scatter(0, places, new).reshape(x.shape)
    y = flat.scatter_reduce(0, places, new, _REDUCE[reduction], include_self=True)
    return y.reshape(x.shape)


def one_hot(indices: T, depth: T, values: T, *, axis: int = -1) -> T:
    """Return ``values[1]`` at each index along a new axis, ``values[0]`` elsewhere."""
    size = int(number(depth))
    places = indices.long()
    places = torch.where(places < 0, places + size, places).unsqueeze(axis)
    line = torch.arange(size, device=places.device)
    axis %= indices.dim() + 1
    hit = places == line.reshape([-1 if i == axis else 1 for i in range(indices.dim() + 1)])
    return torch.where(hit, values[1], values[0])


def non_zero(x: T) -> T:
    """Return the index vectors of non-zero elements, one per column."""
    return torch.nonzero(x).t()


def compress(x: T, condition: T, *, axis: int | None = None) -> T:
    """Select slices of an axis (or elements of the flat input) where the condition holds."""
    places = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1)[places] if axis is None else x.index_select(axis, places)


def trilu(x: T, k: T | None = None, *, upper: int = 1) -> T:
    """Return the upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else int(number(k))
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def eye_like(x: T, *, dtype: int | None = None, k: int = 0) -> T:
    """Return ones on a diagonal, zeros elsewhere, in the shape of ``x``."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    hit = torch.arange(x.shape[1], device=x.device) - rows == k
    return hit.to(x.dtype if dtype is None else DTYPES[dtype])


def reverse_sequence(x: T, lengths: T, *, batch_axis: int = 1, time_axis: int = 0) -> T:
    """Reverse each sequence within its own length."""
    y = x.movedim((time_axis, batch_axis), (0, 1))
    places = reversed_places(y.shape[0], lengths.to(x.device))
    batch = torch.arange(y.shape[1], device=x.device)
    return y[places, batch].movedim((0, 1), (time_axis, batch_axis))


def reversed_places(steps: int, lengths: T) -> T:
    """Return the source step of every step of reversed sequences, [steps, batch]."""
    time = torch.arange(steps, device=lengths.device).unsqueeze(1)
    return torch.where(time < lengths, lengths - 1 - time, time).long()


TABLE: dict[str, Op] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "OneHot": one_hot,
    "NonZero": non_zero,
    "Compress": compress,
    "Trilu": trilu,
    "EyeLike": eye_like,
    "ReverseSequence": reverse_sequence,
}
