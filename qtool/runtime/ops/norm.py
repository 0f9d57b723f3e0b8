"""Normalizations and softmax."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from qtool.runtime.tensors import Op, T, Unhandled


def batch_normalization(
    x: T,
    scale: T,
    b: T,
    mean: T,
    var: T,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> T | tuple[T, T, T]:
    """Normalize each channel by stored statistics, or by the batch's in training mode."""
    if not spatial:
        raise Unhandled("statistics per element (spatial=0)")
    if not training_mode:
        return F.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon)
    axes = [0, *range(2, x.dim())]
    now_var, now_mean = torch.var_mean(x.float(), axes, correction=0)
    now_var, now_mean = now_var.to(mean.dtype), now_mean.to(mean.dtype)
    y = F.batch_norm(x, now_mean, now_var, scale, b, False, 0.0, epsilon)
    keep = 1.0 - momentum
    return y, mean * momentum + now_mean * keep, var * momentum + now_var * keep


def layer_normalization(
    x: T,
    scale: T,
    b: T | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int = 1,
) -> T | tuple[T, ...]:
    """Normalize over the axes from ``axis`` on; return mean and 1 / deviation if requested."""
    axis %= x.dim()
    shape = x.shape[axis:]
    fits = scale.shape == shape and scale.dtype == x.dtype and (b is None or b.shape == shape)
    if fits:
        y = F.layer_norm(x, shape, scale, b, epsilon)
    else:
        y = F.layer_norm(x, shape, eps=epsilon) * scale
        y = y if b is None else y + b
    if n_outputs == 1:
        return y
    wide = x.float() if stash_type == 1 else x
    var, mean = torch.var_mean(wide, list(range(axis, x.dim())), correction=0, keepdim=True)
    return y, mean, (var + epsilon).rsqrt()


def rms_normalization(
    x: T, scale: T, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> T:
    """Divide by the root mean square over the axes from ``axis`` on."""
    wide = x.float() if stash_type == 1 and x.dtype != torch.float64 else x
    square = wide.square().mean(list(range(axis % x.dim(), x.dim())), keepdim=True)
    return (wide * (square + epsilon).rsqrt()).to(x.dtype) * scale


def instance_normalization(x: T, scale: T, b: T, *, epsilon: float = 1e-5) -> T:
    """Normalize each channel of each sample."""
    return F.group_norm(x, x.shape[1], scale, b, epsilon)


def group_normalization(
    x: T, scale: T, b: T, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> T:
    """Normalize groups of channels; scale and bias are per channel."""
    return F.group_norm(x, num_groups, scale, b, epsilon)


def group_normalization_per_group(
    x: T, scale: T, b: T, *, num_groups: int, epsilon: float = 1e-5
) -> T:
    """Normalize groups of channels; scale and bias are per group (before opset 21)."""
    size = x.shape[1] // num_groups
    scale, b = scale.repeat_interleave(size), b.repeat_interleave(size)
    return F.group_norm(x, num_groups, scale, b, epsilon)


def lp_normalization(x: T, *, axis: int = -1, p: int = 2) -> T:
    """Divide by the p-norm along an axis; zero stays zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def lrn(x: T, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> T:
    """Divide by the energy of the neighbouring channels (local response)."""
    before, after = (size - 1) // 2, size // 2
    energy = F.pad(x.square().movedim(1, -1), (before, after)).unfold(-1, size, 1).sum(-1)
    return x / (bias + alpha / size * energy.movedim(-1, 1)).pow(beta)


def mean_variance_normalization(x: T, *, axes: Sequence[int] = (0, 2, 3)) -> T:
    """Normalize to zero mean and unit deviation over the axes."""
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / (
        centred.square().mean(tuple(axes), keepdim=True).sqrt() + 1e-9
    )  # ONNX's function body has this epsilon


def softmax(x: T, *, axis: int = -1) -> T:
    """Compute exp(x) / sum(exp(x)) along an axis."""
    return torch.softmax(x, axis)


def log_softmax(x: T, *, axis: int = -1) -> T:
    """Compute the logarithm of softmax."""
    return torch.log_softmax(x, axis)


def hardmax(x: T, *, axis: int = -1) -> T:
    """Return 1 at the first largest value along an axis, 0 elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def _flat(x: T, axis: int) -> T:
    axis %= x.dim() or 1
    return x.reshape(math.prod(x.shape[:axis]), -1)


def softmax_flat(x: T, *, axis: int = 1) -> T:
    """Compute softmax over all axes from ``axis`` on together (before opset 13)."""
    return torch.softmax(_flat(x, axis), -1).reshape(x.shape)


def log_softmax_flat(x: T, *, axis: int = 1) -> T:
    """Compute log-softmax over all axes from ``axis`` on together (before opset 13)."""
    return torch.log_softmax(_flat(x, axis), -1).reshape(x.shape)


def hardmax_flat(x: T, *, axis: int = 1) -> T:
    """Compute hardmax over all axes from ``axis`` on together (before opset 13)."""
    return hardmax(_flat(x, axis)).reshape(x.shape)


TABLE: dict[str, Op] = {
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LpNormalization": lp_normalization,
    "LRN": lrn,
    "MeanVarianceNormalization": mean_variance_normalization,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "Hardmax": hardmax,
}

# op -> (first opset of the meaning in TABLE, the function for models before it)
BEFORE: dict[str, tuple[int, Op]] = {
    "GroupNormalization": (21, group_normalization_per_group),
    "Softmax": (13, softmax_flat),
    "LogSoftmax": (13, log_softmax_flat),
    "Hardmax": (13, hardmax_flat),
}
