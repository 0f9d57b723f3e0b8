"""Arithmetic of scales, zero points and codes that several quantizers share."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from qtool.quant.primitives import SMALLEST_SCALE, PerChannel, QuantParams
from qtool.weights.grouping import counted_positions

T = torch.Tensor

# A learned scale stays above this share of its initial value: a scale that changes its sign would
# exchange positive and negative codes without any error.
MIN_SCALE_SHARE = 1 / 64


def code_limits(params: QuantParams) -> tuple[int, int]:
    """Return the lowest and highest code of a per-tensor grid, counted from the zero point."""
    zero = int(params.zero_point)
    return params.spec.qmin - zero, params.spec.qmax - zero


def broadcast_scale(scale: Any, x: Any, params: QuantParams) -> Any:
    """Reshape a scale of shape [] or [C] so that it broadcasts against weights.

    Args:
        scale: tensor or array.
        x: the weights, tensor or array.
        params: their grid, which says along which axis the channels lie.
    """
    if not isinstance(params.spec.granularity, PerChannel):
        return scale
    shape = [1] * x.ndim
    shape[params.spec.granularity.axis] = -1
    return scale.reshape(shape)


def scale_rows(weight: T, params: QuantParams) -> T:
    """Return the weights as rows that share a scale, [scales, weights per scale].

    Args:
        weight: any shape.
        params: their grid, one scale per tensor or per channel.
    """
    axis = getattr(params.spec.granularity, "axis", None)
    return weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).flatten(1)


def from_scale_rows(rows: T, weight: T, params: QuantParams) -> T:
    """Return rows in the shape of the weights: the inverse of :func:`scale_rows`."""
    axis = getattr(params.spec.granularity, "axis", None)
    if axis is None:
        return rows.reshape(weight.shape)
    return rows.reshape(weight.movedim(axis, 0).shape).movedim(0, axis)


def per_scale(numbers: T, params: QuantParams) -> T:
    """Reshape one number for each row of :func:`scale_rows` to the scale's shape, [] or [C]."""
    return numbers.reshape(params.scale.shape)


def row_magnitude(rows: T) -> T:
    """Return the mean magnitude of each row of :func:`scale_rows`, [rows].

    Zeros that fill up a kernel do not count (:func:`counted_positions`).
    """
    magnitude: T = rows.abs().mean(1) / counted_positions(rows).to(rows).mean()
    return magnitude.clamp(min=SMALLEST_SCALE)


def channel_magnitude(weight: T, params: QuantParams) -> T:
    """Return the mean |weight| of the weights that share a scale, shape [] or [C].

    Args:
        weight: any shape.
        params: their grid, one scale per tensor or per channel.
    """
    return per_scale(row_magnitude(scale_rows(weight, params)), params)


def raw_tensor(module: nn.Module, name: str) -> T:
    """Return a tensor of a module as the optimizer sees it, before any parametrization."""
    if parametrize.is_parametrized(module, name):
        tensor: T = module.parametrizations[name].original  # type: ignore[index, union-attr]
        return tensor
    tensor = getattr(module, name)
    return tensor


def clamp_below(scale: T, lowest: T) -> None:
    """Raise the elements of ``scale`` below ``lowest`` to it, in place and without gradient."""
    with torch.no_grad():
        scale.copy_(torch.maximum(scale, lowest))


def plan_scale(scale: T, params: QuantParams) -> np.ndarray:
    """Return a scale as the plan stores it: float32, in the shape of the grid's own."""
    return scale.detach().cpu().numpy().astype(np.float32).reshape(params.scale.shape)


@torch.no_grad()
def nearest_codes(weight: T, scale: T, params: QuantParams) -> T:
    """Return clip(round(weight / scale), qmin, qmax) on a symmetric grid, as floats."""
    spec = params.spec
    return (weight / broadcast_scale(scale, weight, params)).clamp_(spec.qmin, spec.qmax).round_()


def freeze_weight(weight: T, scale: T, params: QuantParams) -> tuple[T, QuantParams]:
    """Return the nearest codes of ``weight``, as floats, and the grid with the learned scale."""
    grid = replace(params, scale=plan_scale(scale, params))
    return nearest_codes(weight, scale, params), grid


def freeze_activation(scale: T, zero: T, params: QuantParams) -> QuantParams:
    """Return the grid with the learned scale and zero point.

    Args:
        scale: shape [1].
        zero: shape [1], a real number in training; rounded here.
        params: grid that training started from.
    """
    rounded = zero.detach().cpu().numpy().round().astype(np.int32)
    rounded = rounded.reshape(params.zero_point.shape)
    return replace(params, scale=plan_scale(scale, params), zero_point=rounded)
