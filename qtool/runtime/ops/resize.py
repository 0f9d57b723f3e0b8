"""Resize, Upsample and sampling on a grid.

Each axis is resized on its own: nearest by selecting, the others by a matrix [out, in] of weights.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from qtool.runtime.tensors import Op, T, floats, ints


def _coordinates(mode: str, size: int, out: int, scale: float, crop: tuple[float, float]) -> T:
    """Map each output position to its coordinate in the input, float32."""
    at = torch.arange(out, dtype=torch.float32)
    if mode == "align_corners":
        return at * (size - 1) / (out - 1) if out > 1 else torch.zeros(out)
    if mode == "asymmetric":
        return at / scale
    if mode == "tf_crop_and_resize":
        start, end = crop
        if out > 1:
            return start * (size - 1) + at * (end - start) * (size - 1) / (out - 1)
        return torch.full((out,), 0.5 * (start + end) * (size - 1))
    if mode == "pytorch_half_pixel" and out == 1:
        return torch.zeros(out)
    half = (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        half = half + size / 2 * (1 - out / (scale * size))
    return half


_NEAREST = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _triangle(distance: T) -> T:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: T, a: float) -> T:
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _weights(
    at: T, size: int, scale: float, mode: str, a: float, exclude_outside: int, antialias: int
) -> T:
    """Return interpolation weights [out, in], float32."""
    shrink = min(scale, 1.0) if antialias else 1.0
    radius = (2 if mode == "cubic" else 1) / shrink
    # Taps of a half-open window of the kernel's width around each coordinate.
    reach = math.ceil(radius)
    taps = torch.floor(at).unsqueeze(1) + torch.arange(-reach + 1, reach + 1)
    distance = (taps - at.unsqueeze(1)) * shrink
    weight = _cubic(distance, a) if mode == "cubic" else _triangle(distance)
    if exclude_outside:
        weight = torch.where((taps >= 0) & (taps < size), weight, torch.zeros_like(weight))
    if exclude_outside or antialias:
        weight = weight / weight.sum(1, keepdim=True)
    # Taps beyond the edge repeat the edge element.
    places = taps.clamp(0, size - 1).long()
    return torch.zeros(len(at), size).scatter_add(1, places, weight)


def _targets(
    x: T, axes: list[int], scales: list[float], sizes: list[int], policy: str
) -> tuple[list[int], list[float]]:
    """Return the output size and scale of each axis in ``axes``."""
    if not sizes:
        return [math.floor(x.shape[a] * s) for a, s in zip(axes, scales, strict=True)], scales
    scales = [n / x.shape[a] for a, n in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        one = min(scales) if policy == "not_larger" else max(scales)
        scales = [one] * len(axes)
        sizes = [math.floor(one * x.shape[a] + 0.5) for a in axes]
    return sizes, scales


def resize(
    x: T,
    roi: T | None = None,
    scales: T | Sequence[float] | None = None,
    sizes: T | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> T:
    """Resize ``x``: nearest, linear or cubic."""
    where = [a % x.dim() for a in axes] if axes is not None else list(range(x.dim()))
    scale_list = floats(scales) if scales is not None else []
    size_list = ints(sizes) if sizes is not None else []
    outs, factors = _targets(x, where, scale_list, size_list, keep_aspect_ratio_policy)
    kind = coordinate_transformation_mode
    crop = kind == "tf_crop_and_resize"
    region = floats(roi) if crop and roi is not None else [0.0] * len(where) + [1.0] * len(where)
    y = x if x.is_floating_point() or mode == "nearest" else x.float()
    outside = torch.zeros([1] * x.dim(), dtype=torch.bool)
    for i, axis in enumerate(where):
        size, out, factor = x.shape[axis], outs[i], factors[i]
        if size == out and factor == 1.0 and not crop:
            continue
        at = _coordinates(kind, size, out, factor, (region[i], region[i + len(where)]))
        if crop:
            beyond = (at < 0) | (at > size - 1)
            outside = outside | beyond.reshape([-1 if k == axis else 1 for k in range(x.dim())])
        if mode == "nearest":
            places = _NEAREST[nearest_mode](at).clamp(0, size - 1).long()
            y = y.index_select(axis, places.to(x.device))
        else:
            matrix = _weights(at, size, factor, mode, cubic_coeff_a, exclude_outside, antialias)
            y = (y.movedim(axis, -1) @ matrix.t().to(x.device, y.dtype)).movedim(-1, axis)
    if crop and bool(outside.any()):
        y = torch.where(outside.to(x.device), torch.full_like(y, extrapolation_value), y)
    return y if y.dtype == x.dtype else _integer(y, x.dtype)


def _integer(y: T, dtype: torch.dtype) -> T:
    limits = torch.iinfo(dtype)
    return y.round().clamp(limits.min, limits.max).to(dtype)


def resize_from_corner(x: T, scales: T | Sequence[float], *, mode: str = "nearest") -> T:
    """Compute Upsample, and Resize before opset 11: asymmetric coordinates, rounded down."""
    kind = "linear" if mode in ("linear", "bilinear") else "nearest"
    return resize(
        x,
        scales=scales,
        mode=kind,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


_SAMPLING = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(
    x: T,
    grid: T,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> T:
    """Sample ``x`` at the positions of a grid that spans [-1, 1]."""
    return F.grid_sample(x, grid, _SAMPLING.get(mode, mode), padding_mode, bool(align_corners))


def affine_grid(theta: T, size: T, *, align_corners: int = 0) -> T:
    """Return the sampling grid of an affine map."""
    return F.affine_grid(theta, ints(size), bool(align_corners))


def center_crop_pad(x: T, shape: T, *, axes: Sequence[int] | None = None) -> T:
    """Crop or zero-pad ``x`` around its middle to the shape."""
    where = list(axes) if axes is not None else list(range(x.dim()))
    for axis, size in zip(where, ints(shape), strict=True):
        extra = size - x.shape[axis]
        if extra < 0:
            x = x.narrow(axis, -extra // 2, size)
        elif extra > 0:
            amounts = [0] * (2 * x.dim())
            place = 2 * (x.dim() - 1 - axis % x.dim())
            amounts[place], amounts[place + 1] = extra // 2, extra - extra // 2
            x = F.pad(x, amounts)
    return x


TABLE: dict[str, Op] = {
    "Resize": resize,
    "Upsample": resize_from_corner,
    "GridSample": grid_sample,
    "AffineGrid": affine_grid,
    "CenterCropPad": center_crop_pad,
}

BEFORE: dict[str, tuple[int, Op]] = {"Resize": (11, resize_from_corner)}
