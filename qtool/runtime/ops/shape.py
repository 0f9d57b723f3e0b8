"""Shapes, layout, and tensors made from shapes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from qtool.runtime.tensors import DTYPES, NARROW_INTS, Op, T, Unhandled, ints, number

Ints = T | Sequence[int]


def reshape(x: T, shape: Ints, *, allowzero: int = 0) -> T:
    """Reshape; 0 copies a size, -1 infers one."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if -1 in sizes and x.numel() == 0:
        at, rest = sizes.index(-1), math.prod(n for n in sizes if n != -1)
        sizes[at] = 0 if rest else 1
    return x.reshape(sizes)


def flatten(x: T, *, axis: int = 1) -> T:
    """Flatten to two axes: those before ``axis``, and the rest."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(x: T, *, perm: Sequence[int] | None = None) -> T:
    """Permute axes; reverse them by default."""
    return x.permute(list(perm) if perm is not None else list(range(x.dim()))[::-1])


def squeeze(x: T, axes: Ints | None = None) -> T:
    """Remove the axes of size 1 in ``axes``, or all of them."""
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(ints(axes)))


def unsqueeze(x: T, axes: Ints) -> T:
    """Insert axes of size 1; ``axes`` index the result."""
    places = ints(axes)
    rank = x.dim() + len(places)
    for axis in sorted(a % rank for a in places):
        x = x.unsqueeze(axis)
    return x


def concat(*tensors: T, axis: int = 1) -> T:
    """Concatenate the inputs along an axis."""
    return torch.cat(tensors, axis)


def split(
    x: T,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int = 1,
) -> tuple[T, ...]:
    """Split an axis into consecutive parts of the sizes ``split``, or as equal as possible."""
    if split is None:
        count = num_outputs or n_outputs
        size = math.ceil(x.shape[axis] / count)
        sizes = [min(size, x.shape[axis] - i * size) for i in range(count)]
    else:
        sizes = ints(split)
    return torch.split(x, sizes, axis)


def slice_(
    x: T, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None
) -> T:
    """Slice each axis in ``axes``; steps may be negative."""
    first, last = ints(starts), ints(ends)
    where = ints(axes) if axes is not None else list(range(len(first)))
    stride = ints(steps) if steps is not None else [1] * len(first)
    for axis, begin, end, step in zip(where, first, last, stride, strict=True):
        start, stop, step = slice(begin, end, step).indices(x.shape[axis])
        count = len(range(start, stop, step))
        if step > 0:
            index = [slice(None)] * (axis % x.dim()) + [slice(start, max(stop, start), step)]
            x = x[tuple(index)]
        else:
            places = torch.arange(count, device=x.device) * step + start
            x = x.index_select(axis, places)
    return x


def pad(
    x: T,
    pads: Ints,
    value: T | float | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> T:
    """Pad before and after axes: constant, reflect, edge or wrap; negative amounts crop."""
    amounts = ints(pads)
    where = [a % x.dim() for a in ints(axes)] if axes is not None else list(range(x.dim()))
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(where):
        before[axis], after[axis] = amounts[i], amounts[i + len(where)]
    if mode == "constant":
        fill = 0 if value is None else number(value)
        flat = [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair]
        while flat and flat[-1] == flat[-2] == 0:
            flat = flat[:-2]
        return F.pad(x, flat, value=fill) if flat else x
    for axis, (b, e) in enumerate(zip(before, after, strict=True)):
        if b or e:
            x = x.index_select(axis, _border(x.shape[axis], b, e, mode).to(x.device))
    return x


def _border(n: int, before: int, after: int, mode: str) -> T:
    """Return the source index of each position of a padded axis."""
    places = torch.arange(-before, n + after)
    if mode == "edge":
        return places.clamp(0, n - 1)
    if mode == "wrap":
        return places % n
    if mode == "reflect":
        if n == 1:
            return torch.zeros_like(places)
        places = places % (2 * n - 2)
        return torch.where(places < n, places, 2 * n - 2 - places)
    raise Unhandled(f"padding mode {mode}")


def expand(x: T, shape: Ints) -> T:
    """Broadcast to the shape; axes of size 1 in the shape keep the input's size."""
    sizes = ints(shape)
    return x.expand(torch.broadcast_shapes(x.shape, sizes))


def tile(x: T, repeats: Ints) -> T:
    """Repeat the input along each axis."""
    return x.repeat(ints(repeats))


def shape(x: T, *, start: int = 0, end: int | None = None) -> T:
    """Return the sizes of the axes, on the CPU."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def size(x: T) -> T:
    """Return the number of elements, on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def constant(
    *,
    value: T | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
) -> T:
    """Return the tensor written in the node's attributes."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return torch.tensor(
            value_float if value_floats is None else list(value_floats), dtype=torch.float32
        )
    if value_int is not None or value_ints is not None:
        return torch.tensor(
            value_int if value_ints is None else list(value_ints), dtype=torch.int64
        )
    raise Unhandled("a sparse or string constant")


def constant_of_shape(shape: Ints, *, value: T | None = None) -> T:
    """Fill a shape with one value; float 0 by default."""
    sizes = ints(shape)
    if value is None:
        return torch.zeros(sizes)
    return value.reshape(()).expand(sizes).clone()


def range_(start: T, limit: T, delta: T) -> T:
    """Return numbers from start to limit (excluded) in steps of delta."""
    first, last, step = number(start), number(limit), number(delta)
    count = max(math.ceil((last - first) / step), 0)
    # start + i * delta, not a running sum: errors do not accumulate.
    wide = torch.arange(count, device=start.device)
    if start.is_floating_point():
        return (wide.double() * step + first).to(start.dtype)
    return (wide * step + first).to(start.dtype)


def identity(x: Any) -> Any:
    """Return the input."""
    return x


def dropout(
    x: T,
    ratio: T | float | None = None,
    training_mode: T | None = None,
    *,
    seed: int | None = None,
    n_outputs: int = 1,
) -> T | tuple[T, T]:
    """Return the input, as in inference."""
    if training_mode is not None and bool(number(training_mode)):
        chance = 0.5 if ratio is None else number(ratio)
        if chance:
            raise Unhandled("dropout in training mode")
    return x if n_outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


def cast(x: T, *, to: int, saturate: int = 1, round_mode: str = "up") -> T:
    """Convert to another type."""
    if to in NARROW_INTS:
        bits, signed = NARROW_INTS[to]
        # Integers narrower than a byte wrap around, as C casts do.
        wrapped = x.long() & (2**bits - 1)
        if signed:
            wrapped = wrapped - ((wrapped >> (bits - 1)) << bits)
        return wrapped.to(DTYPES[to])
    if to not in DTYPES or to in (23, 24, 27, 28):
        raise Unhandled(f"cast to ONNX type {to}")
    target = DTYPES[to]
    if 17 <= to <= 20:
        return to_float8(x, target, saturate)
    if x.is_floating_point() and not target.is_floating_point and target != torch.bool:
        # Through int64: a float that leaves a narrow type wraps there on every device.
        return x.to(torch.int64).to(target) if target != torch.uint64 else x.to(target)
    return x.to(target)


def to_float8(x: T, target: torch.dtype, saturate: int = 1) -> T:
    """Round to 8-bit floats; out of range: the largest, or infinity / NaN without saturation."""
    top = torch.finfo(target).max
    wide = x.float()
    if saturate:
        wide = torch.where(wide.isnan(), wide, wide.clamp(-top, top))
    elif target == torch.float8_e4m3fn:  # no infinity; from half a step above the largest on, NaN
        wide = torch.where(wide.abs() > top + 16, torch.full_like(wide, math.nan), wide)
    return wide.to(target)


def cast_like(x: T, like: T, *, saturate: int = 1, round_mode: str = "up", to: int = 0) -> T:
    """Convert to the type of another tensor (``to``: that type as the model declares it)."""
    if to:
        return cast(x, to=to, saturate=saturate, round_mode=round_mode)
    return x.to(like.dtype)


def depth_to_space(x: T, *, blocksize: int, mode: str = "DCR") -> T:
    """Rearrange channels into blocks of pixels."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    y = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


def space_to_depth(x: T, *, blocksize: int, mode: str = "DCR") -> T:
    """Rearrange blocks of pixels into channels."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return y.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // blocksize, w // blocksize)


TABLE: dict[str, Op] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "Shape": shape,
    "Size": size,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "Identity": identity,
    "Dropout": dropout,
    "Cast": cast,
    "CastLike": cast_like,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
