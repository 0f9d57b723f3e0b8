"""BatchNorm over a batch whose rows lie in several processes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from qtool.qat import distributed

T = torch.Tensor


def batch_norm(x: T, gamma: T, beta: T, epsilon: float) -> tuple[T, T, T, T]:
    """Normalize by the mean and variance over all processes, then scale and shift.

    Args:
        x: [N, C, ...], this process's rows; N may differ between processes.
        gamma, beta: [C].
        epsilon: added to the variance.

    Returns:
        The result, the mean [C], the biased variance [C], and how many numbers they are of [C].
    """
    rows = x.numel() // x.shape[1]
    with torch.no_grad():
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        found = distributed.gather(torch.stack([torch.full_like(mean, rows), mean, var]))
        counted = found[:, 0].sum(0)
        share = found[:, 0] / counted
        whole = (share * found[:, 1]).sum(0)
        # What lies within the processes and what lies between them.
        var = (share * (found[:, 2] + (found[:, 1] - whole).square())).sum(0)
    y: T = _WholeBatch.apply(x, gamma, beta, whole, var, counted, epsilon)
    return y, whole, var, counted


class _WholeBatch(torch.autograd.Function):
    """The gradients that BatchNorm has because every row moves mean and variance.

    Source: Ioffe and Szegedy 2015, sec. 3, arXiv:1502.03167.
    """

    @staticmethod
    def forward(
        ctx: Any, x: T, gamma: T, beta: T, mean: T, var: T, counted: T, epsilon: float
    ) -> T:
        ctx.save_for_backward(x, gamma, mean, var, counted)
        ctx.epsilon = epsilon
        return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: T) -> tuple[T, T, T, None, None, None, None]:
        x, gamma, mean, var, counted = ctx.saved_tensors
        # As if mean and variance were constants; then what they add, summed over all processes.
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, mean, var, None, None, False, ctx.epsilon, [True, True, True]
        )
        by_var, by_mean = distributed.add_up(torch.stack([dgamma, dbeta])) / counted
        inverse = (var + ctx.epsilon).rsqrt()
        shape = [1, -1, *[1] * (x.dim() - 2)]
        slope = (gamma * inverse * inverse * by_var).reshape(shape)
        shift = (gamma * inverse * by_mean).reshape(shape)
        dx -= (x - mean.reshape(shape)) * slope + shift
        return dx, dgamma, dbeta, None, None, None, None
