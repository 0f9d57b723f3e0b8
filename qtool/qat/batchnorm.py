"""BatchNorm in training: behind a layer, over the batches of all processes, folded at the end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from qtool.errors import RecipeError
from qtool.graph.batchnorm import FoldedNorm
from qtool.qat import distributed
from qtool.qat.quantizers.scales import broadcast_scale
from qtool.qat.quantizers.ste import straight_through
from qtool.quant.primitives import NEGLIGIBLE_SCALE, Codebook, QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class BatchStatistics:
    """Statistics of a batch whose rows lie in several processes.

    Attributes:
        mean: per channel [C].
        var: biased variance per channel [C].
        count: elements per channel [C].
    """

    mean: T
    var: T
    count: T


def batch_norm(x: T, gamma: T, beta: T, epsilon: float) -> tuple[T, BatchStatistics]:
    """Normalize by the mean and variance over all processes, then scale and shift.

    y = gamma (x - mean) / sqrt(var + epsilon) + beta.

    Args:
        x: [N, C, ...], this process's rows; N may differ between processes.
        gamma: factor [C].
        beta: shift [C].
        epsilon: added to the variance.

    Returns:
        y, and the statistics over the rows of all processes.
    """
    rows = x.numel() // x.shape[1]
    with torch.no_grad():
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        parts = distributed.all_gather(torch.stack([torch.full_like(mean, rows), mean, var]))
        count = parts[:, 0].sum(0)
        share = parts[:, 0] / count
        whole = (share * parts[:, 1]).sum(0)
        # The variance within the processes plus that between their means.
        var = (share * (parts[:, 2] + (parts[:, 1] - whole).square())).sum(0)
    statistics = BatchStatistics(whole, var, count)
    y: T = _WholeBatch.apply(x, gamma, beta, statistics, epsilon)
    return y, statistics


class _WholeBatch(torch.autograd.Function):
    """The gradients that BatchNorm has because every row changes mean and variance.

    Source: Ioffe and Szegedy 2015, sec. 3, arXiv:1502.03167.
    """

    @staticmethod
    def forward(
        ctx: Any, x: T, gamma: T, beta: T, statistics: BatchStatistics, epsilon: float
    ) -> T:
        mean, var = statistics.mean, statistics.var
        ctx.save_for_backward(x, gamma, mean, var, statistics.count)
        ctx.epsilon = epsilon
        return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: T) -> tuple[T, T, T, None, None]:
        x, gamma, mean, var, count = ctx.saved_tensors
        # As if mean and variance were constants; then what they add, summed over all processes.
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, mean, var, None, None, False, ctx.epsilon, [True, True, True]
        )
        by_var, by_mean = distributed.all_reduce_sum(torch.stack([dgamma, dbeta])) / count
        inverse = (var + ctx.epsilon).rsqrt()
        shape = [1, -1, *[1] * (x.dim() - 2)]
        slope = (gamma * inverse * inverse * by_var).reshape(shape)
        shift = (gamma * inverse * by_mean).reshape(shape)
        dx -= (x - mean.reshape(shape)) * slope + shift
        return dx, dgamma, dbeta, None, None


class LiveNorm(nn.Module):
    """A BatchNorm behind a layer's raw output, channels along axis 1.

    In evaluation its shift is rounded as the bias it will become; in training it is not.

    Attributes:
        live: batch statistics while training, over the batches of all processes; else the running
            ones always.
        gamma: factor, learned, none negative [C].
        beta: shift, learned [C].
        mean: running mean [C].
        var: running variance [C].
    """

    mean: T
    var: T

    def __init__(
        self, norm: FoldedNorm, live: bool, bias_step: Callable[[], T], momentum: float = 0.1
    ) -> None:
        """Make the module.

        Args:
            norm: the BatchNorm as it was folded into the layer.
            live: use batch statistics while training.
            bias_step: returns the step of the layer's int32 bias, shape [] or [C].
            momentum: weight of the newest batch in the running statistics.
        """
        super().__init__()
        self.live, self.epsilon, self.momentum = live, norm.epsilon, momentum
        self.bias_step = bias_step
        # Signs of channels are in the layer's weights, see unfold_norm.
        sign = np.where(norm.gamma < 0, -1.0, 1.0)
        self.gamma = nn.Parameter(torch.tensor(np.abs(norm.gamma), dtype=torch.float32))
        self.beta = nn.Parameter(torch.tensor(norm.beta, dtype=torch.float32))
        # The layer's own bias only shifts the mean.
        mean = torch.tensor(sign * (norm.mean - norm.bias), dtype=torch.float32)
        self.register_buffer("mean", mean)
        self.register_buffer("var", torch.tensor(norm.var, dtype=torch.float32))

    def forward(self, x: T) -> T:
        """Normalize, scale and shift a layer's output [N, C, ...].

        Raises:
            RecipeError: one value per channel, which has no statistics.
        """
        if self.training and self.live:
            return self._by_batch_statistics(x)
        factor = self.gamma / (self.var + self.epsilon).sqrt()
        step = self.bias_step() * factor.detach()
        shift = self.beta - self.mean * factor
        # A dead channel (factor 0) keeps its shift.
        rounded = straight_through(shift / torch.where(step == 0, 1.0, step)) * step
        shift = torch.where(step == 0, shift, rounded)
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return x * factor.reshape(shape) + shift.reshape(shape)

    def _by_batch_statistics(self, x: T) -> T:
        """Normalize by the statistics of the batch, and update the running ones."""
        if distributed.count() == 1:
            if x.numel() == x.shape[1]:
                raise RecipeError(
                    "qat: a batch of 1 has no statistics for a BatchNorm of one pixel; use a "
                    "larger batch, or batchnorm: frozen"
                )
            mean, var, momentum = self.mean, self.var, self.momentum
            return F.batch_norm(x, mean, var, self.gamma, self.beta, True, momentum, self.epsilon)
        y, statistics = batch_norm(x, self.gamma, self.beta, self.epsilon)
        with torch.no_grad():
            self.mean.lerp_(statistics.mean, self.momentum)
            # Running variances are unbiased, as torch's.
            count = statistics.count
            self.var.lerp_(statistics.var * count / (count - 1), self.momentum)
        return y

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (factor, shift) per channel [C], float64, of the BatchNorm in inference."""
        gamma, beta, mean, var = (
            t.detach().cpu().double().numpy() for t in (self.gamma, self.beta, self.mean, self.var)
        )
        factor = gamma / np.sqrt(var + self.epsilon)
        return factor, beta - mean * factor


def unfold_norm(
    weight: np.ndarray, params: QuantParams, norm: FoldedNorm
) -> tuple[np.ndarray, QuantParams]:
    """Return weights and per-channel grid as before the BatchNorm was folded, but for its signs.

    raw = weight / f and scale / f with f = |gamma| / sqrt(var + epsilon). Signs stay in the
    weights, so that the factor folded in later is positive and any code, also the lowest, which has
    no opposite, stays the same.

    Args:
        weight: folded weights.
        params: their grid, one scale per channel.
        norm: the BatchNorm that was folded into them.
    """
    factor = np.abs(norm.gamma) / np.sqrt(norm.var + norm.epsilon)
    safe = np.where(factor == 0, 1.0, factor)
    raw = (weight.astype(np.float64) / broadcast_scale(safe, weight, params)).astype(np.float32)
    scale = (params.scale.astype(np.float64) / safe).astype(np.float32)
    return raw, replace(params, scale=scale)


def fold_norm(
    codes: np.ndarray, params: QuantParams, factor: np.ndarray
) -> tuple[np.ndarray, QuantParams]:
    """Fold a BatchNorm's factors into the grid: scale * factor; codes stay.

    A factor of 0 gives codes 0 and scale 1; codes of a code book, which may have no level 0, stay,
    on a scale so small that their products vanish.

    Args:
        codes: of the layer's weights.
        params: their grid, one scale per channel.
        factor: per channel [C], none negative.
    """
    if isinstance(params, Codebook):
        scale = np.maximum(params.scale * factor, NEGLIGIBLE_SCALE).astype(np.float32)
        return codes, replace(params, scale=scale)
    alive = broadcast_scale(factor > 0, codes, params).astype(codes.dtype)
    scale = params.scale.astype(np.float64) * factor
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return codes * alive, replace(params, scale=scale)
