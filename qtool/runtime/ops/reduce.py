"""Reductions over axes, arg-reductions, sorting and cumulative sums."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qtool.runtime.tensors import Op, T, ints, number

Axes = T | Sequence[int] | None


def reduction(fn: Callable[[T, list[int], bool], T], point: Callable[[T], T]) -> Callable[..., T]:
    """Wrap a torch reduction as an ONNX one: axes are an input (opset 13, 18) or attribute.

    ``point`` is the reduction of a single element, for ``noop_with_empty_axes``.
    """

    def call(x: T, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> T:
        over = [] if axes is None else [a % (x.dim() or 1) for a in ints(axes)]
        if not over:
            if noop_with_empty_axes:
                return point(x)
            over = list(range(x.dim()))
        return fn(x, over, bool(keepdims)) if x.dim() else point(x)

    return call


def _sum(x: T, axes: list[int], keep: bool) -> T:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: T, axes: list[int], keep: bool) -> T:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = math.prod(x.shape[a] for a in axes)
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _prod(x: T, axes: list[int], keep: bool) -> T:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _empty(x: T, axes: list[int], keep: bool, value: Any) -> T:
    shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
    if not keep:
        shape = [n for i, n in enumerate(x.shape) if i not in axes]
    return torch.full(shape, value, dtype=x.dtype, device=x.device)


def _lowest(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return False
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return True
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _max(x: T, axes: list[int], keep: bool) -> T:
    if any(x.shape[a] == 0 for a in axes):
        return _empty(x, axes, keep, _lowest(x.dtype))
    return x.amax(axes, keepdim=keep)


def _min(x: T, axes: list[int], keep: bool) -> T:
    if any(x.shape[a] == 0 for a in axes):
        return _empty(x, axes, keep, _highest(x.dtype))
    return x.amin(axes, keepdim=keep)


def _l1(x: T, axes: list[int], keep: bool) -> T:
    return _sum(x.abs(), axes, keep)


def _square_sum(x: T, axes: list[int], keep: bool) -> T:
    return _sum(x * x, axes, keep)


def _l2(x: T, axes: list[int], keep: bool) -> T:
    return _square_sum(x, axes, keep).sqrt().to(x.dtype)


def _log_sum(x: T, axes: list[int], keep: bool) -> T:
    return _sum(x, axes, keep).log().to(x.dtype)


def _log_sum_exp(x: T, axes: list[int], keep: bool) -> T:
    return torch.logsumexp(x, axes, keep).to(x.dtype)


def _same(x: T) -> T:
    return x


def _log(x: T) -> T:
    return x.log().to(x.dtype)


def arg_reduction(fn: Callable[..., T]) -> Callable[..., T]:
    """Wrap argmax or argmin: the index of the first extreme value, or of the last."""

    def call(x: T, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> T:
        if not select_last_index:
            return fn(x, axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - fn(x.flip(axis), axis, keepdim=bool(keepdims))

    return call


def top_k(x: T, k: T | int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[T, T]:
    """Return the k extreme values along an axis and their indices, ties in order of index."""
    kind = x.dtype
    if kind in (torch.uint16, torch.uint32, torch.uint64):
        x = x.long()
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(number(k))
    return values.narrow(axis, 0, count).to(kind), places.narrow(axis, 0, count)


def _running(fn: Callable[..., T], start: int) -> Callable[..., T]:
    def call(x: T, axis: T, *, exclusive: int = 0, reverse: int = 0) -> T:
        dim = int(number(axis))
        if reverse:
            x = x.flip(dim)
        y = fn(x, dim, dtype=x.dtype)
        if exclusive:
            first = torch.full_like(y.narrow(dim, 0, 1), start)
            y = torch.cat([first, y.narrow(dim, 0, y.shape[dim] - 1)], dim)
        return y.flip(dim) if reverse else y

    return call


TABLE: dict[str, Op] = {
    "ReduceSum": reduction(_sum, _same),
    "ReduceMean": reduction(_mean, _same),
    "ReduceProd": reduction(_prod, _same),
    "ReduceMax": reduction(_max, _same),
    "ReduceMin": reduction(_min, _same),
    "ReduceL1": reduction(_l1, torch.abs),
    "ReduceL2": reduction(_l2, torch.abs),
    "ReduceSumSquare": reduction(_square_sum, torch.square),
    "ReduceLogSum": reduction(_log_sum, _log),
    "ReduceLogSumExp": reduction(_log_sum_exp, _same),
    "ArgMax": arg_reduction(torch.argmax),
    "ArgMin": arg_reduction(torch.argmin),
    "TopK": top_k,
    "CumSum": _running(torch.cumsum, 0),
    "CumProd": _running(torch.cumprod, 1),
}
