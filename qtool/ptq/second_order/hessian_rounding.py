"""Round the rows of a matrix so that products with given second moments change least.

All functions work on one layer: matrices [groups, outputs, unknowns] and second moments
[groups, unknowns, unknowns] of its inputs, float64.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qtool.ptq.second_order.covariance import LayerMoments, Moments
from qtool.quant.primitives import QuantSpec, round_half_even

# Factors on the range of a channel that are tried below 8 bits, as in AdaRound's and OMSE's codes.
FACTORS = np.linspace(1.0, 0.35, 27)


@dataclass(frozen=True)
class Rounded:
    """Codes of a matrix and their scales.

    Attributes:
        codes: whole numbers, [groups, outputs, unknowns], float64.
        scale: step of each row, [groups, outputs, 1].
    """

    codes: np.ndarray
    scale: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """Codes times scale."""
        return np.asarray(self.codes * self.scale)


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Return H + lam I, lam = damping x mean diag H; I for a group whose inputs are all zero."""
    size = hessian.shape[-1]
    mean = np.trace(hessian, axis1=1, axis2=2) / size
    lam = np.where(mean > 0, damping * mean, 1.0)
    # A damping of 0 leaves singular matrices; 1e-8 is far below the error of the moments.
    lam = np.maximum(lam, 1e-8 * mean)
    return np.asarray(hessian + lam[:, None, None] * np.eye(size))


def asymmetric_target(weights: np.ndarray, moments: Moments, damping: float) -> np.ndarray:
    """Return the weights that best compute the float layer's output from quantized inputs.

    ::

        T = (W C + lam W) (H + lam I)^-1,   H = cov(x_q), C = cov(x_float, x_q)

    the minimum of E|W x_float - T x_q|^2 + lam |T - W|^2, lam = damping x mean diag H.
    """
    # W C + lam W = W (H + lam I) + W (C - H)
    ridge, right = damped(moments.hessian, damping), torch.from_numpy(moments.error).mT
    return np.asarray(weights + torch.linalg.solve(torch.from_numpy(ridge), right).mT.numpy())


def shrinkage(weights: np.ndarray, moments: LayerMoments, damping: float) -> float:
    """Return how far to go from the weights to the asymmetric target, 0 to 1, by cross-validation.

    With T solved on one half of the samples, the error of W + a (T - W) on the other half is a
    parabola in a; returns the minimum of the sum of both, cut to [0, 1].
    """
    if len(moments.halves) < 2:
        return 0.0
    curvature = slope = 0.0
    for solved_on, tried_on in (moments.halves, moments.halves[::-1]):
        change = asymmetric_target(weights, solved_on, damping) - weights
        curvature += float(np.sum((change @ tried_on.hessian) * change))
        slope -= float(np.sum(change * tried_on.error))
    return float(np.clip(-slope / curvature, 0, 1)) if curvature > 0 else 0.0


def row_errors(difference: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Return d H d' of every row, [groups, outputs]."""
    return np.asarray(np.sum((difference @ hessian) * difference, 2))


def search_scale(
    target: np.ndarray, hessian: np.ndarray, spec: QuantSpec, shared: bool
) -> np.ndarray:
    """Return the step of each row, [groups, outputs, 1], among FACTORS of the row's full range.

    The factor whose nearest codes have the smallest (T - Q) H (T - Q)'; at 8 bits and more the
    full range, since clipping gains nothing there.

    Args:
        target: what is rounded.
        hessian: second moments of the inputs.
        spec: signed and symmetric.
        shared: one step for all rows.
    """
    largest = np.abs(target).max(2, keepdims=True)
    largest = np.full_like(largest, largest.max()) if shared else largest
    full = np.where(largest > 0, largest, 1.0) / spec.qmax
    if spec.bits >= 8:
        return np.asarray(full)
    # float32: a score that is wrong in its seventh digit chooses as well.
    wide, weight = torch.from_numpy(target).float(), torch.from_numpy(hessian).float()
    steps, best = torch.from_numpy(full).float(), torch.ones(largest.shape)
    least = torch.full(largest.shape, float("inf"))
    for factor in FACTORS:
        step = steps * float(factor)
        error = wide - round_half_even(wide / step).clip(spec.qmin, spec.qmax) * step
        score = ((error @ weight) * error).sum(2, keepdim=True)
        score = score.sum((0, 1), keepdim=True).expand_as(score) if shared else score
        better = score < least
        least = torch.where(better, score, least)
        best = torch.where(better, float(factor), best)
    return np.asarray(full * best.double().numpy())


def round_with_compensation(
    target: np.ndarray,
    hessian: np.ndarray,
    scale: np.ndarray,
    limits: tuple[int, int],
    act_order: bool = True,
    block: int = 128,
    mask: np.ndarray | None = None,
) -> Rounded:
    """Round column by column; spread the error of each over the columns that are not rounded yet.

    ::

        U = chol(H^-1), upper;  q_i = round(w_i);  w_j -= (w_i - q_i) U_ij / U_ii  for j > i

    Args:
        target: what is rounded, [groups, outputs, unknowns].
        hessian: damped second moments, positive definite.
        scale: of each row, [groups, outputs, 1].
        limits: smallest and largest code.
        act_order: columns of large second moments first.
        block: columns after which the rest is updated, by one matrix product.
        mask: 0 for weights whose code is 0, else 1, the shape of the target; None: all 1. What a
            pruned weight leaves is an error like that of rounding.

    Source: Frantar et al. 2022, "GPTQ", alg. 1, arXiv:2210.17323.
    """
    size, diagonal = target.shape[2], np.diagonal(hessian, axis1=1, axis2=2)
    order = np.argsort(-diagonal, axis=1, kind="stable") if act_order else None
    if order is not None:
        hessian = np.take_along_axis(hessian, order[:, :, None], 1)
        hessian = np.take_along_axis(hessian, order[:, None, :], 2)
        target = np.take_along_axis(target, order[:, None, :], 2)
        mask = None if mask is None else np.take_along_axis(mask, order[:, None, :], 2)
    factor = _unit_inverse_factor(hessian)
    # Columns are rows here: each step reads and writes whole lines of memory, in units of codes.
    w = np.ascontiguousarray((target / scale).swapaxes(1, 2))
    codes = np.empty_like(w)
    for start in range(0, size, block):
        stop = min(start + block, size)
        errors = np.empty_like(w[:, start:stop])
        for i in range(start, stop):
            codes[:, i] = round_half_even(w[:, i]).clip(*limits)
            if mask is not None:
                codes[:, i] *= mask[:, :, i]
            error = errors[:, i - start] = w[:, i] - codes[:, i]
            w[:, i + 1 : stop] -= factor[:, i, i + 1 : stop, None] * error[:, None]
        w[:, stop:] -= factor[:, start:stop, stop:].swapaxes(1, 2) @ errors
    codes = codes.swapaxes(1, 2)
    if order is not None:
        back = np.argsort(order, axis=1)
        codes = np.take_along_axis(codes, back[:, None, :], 2)
    return Rounded(codes, scale)


def _unit_inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """Return U_ij / U_ii of the upper factor H^-1 = U' U, without inverting H.

    With the order of columns reversed, H = R R' with R upper, and U = R^-1.
    """
    reverse = torch.from_numpy(hessian[:, ::-1, ::-1].copy())
    lower = torch.linalg.cholesky(reverse)
    eye = torch.eye(hessian.shape[1], dtype=lower.dtype).expand_as(lower)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False).numpy()[:, ::-1, ::-1]
    diagonal = np.diagonal(inverse, axis1=1, axis2=2)
    return np.asarray(inverse / diagonal[:, :, None])
