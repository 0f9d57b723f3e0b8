"""Improve codes one coordinate at a time, and the steps between codes in closed form."""

from typing import Literal

import numpy as np

from qtool.ptq.second_order.hessian_rounding import Rounded
from qtool.quant.primitives import SMALLEST_SCALE, round_half_even

Steps = Literal["rows", "shared", "fixed"]


def coordinate_descent(
    rounded: Rounded,
    target: np.ndarray,
    hessian: np.ndarray,
    limits: tuple[int, int],
    sweeps: int = 3,
    steps: Steps = "rows",
    mask: np.ndarray | None = None,
) -> Rounded:
    """Return codes and scales with an error E H E', E = T - s q, that is no larger.

    ::

        q_i <- clip(round(q_i + (E H)_i / (s H_ii)))   for every column i, all others fixed
        s   <- (T H q') / (q H q')                     after each sweep, codes fixed

    Each update is the exact minimum along its coordinate.

    Args:
        rounded: where to start.
        target: T, [groups, outputs, unknowns].
        hessian: damped second moments, [groups, unknowns, unknowns].
        limits: smallest and largest code.
        sweeps: over all columns, at most; none after one that changed no code.
        steps: ``rows``: each row has its own s; ``shared``: all rows have one; ``fixed``: s stays.
        mask: 0 for weights whose code stays 0, else 1, the shape of the target; None: all 1.

    Source: Zhang et al. 2024, "COMQ: A Backpropagation-Free Algorithm for Post-Training
        Quantization", alg. 2, arXiv:2403.07134.
    """
    codes, scale = rounded.codes.copy(), rounded.scale
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    for _ in range(sweeps):
        scale = _refit(codes, scale, target, hessian, steps)
        gradient = (target - codes * scale) @ hessian
        changed = 0
        for i in np.argsort(-diagonal.mean(0), kind="stable"):
            step = gradient[:, :, i] / (scale[:, :, 0] * diagonal[:, None, i])
            better = round_half_even(codes[:, :, i] + step).clip(*limits)
            better = better if mask is None else better * mask[:, :, i]
            change = better - codes[:, :, i]
            group, row = np.nonzero(change)
            if len(row):
                codes[group, row, i] = better[group, row]
                values = (change * scale[:, :, 0])[group, row]
                gradient[group, row] -= values[:, None] * hessian[group, i]
                changed += len(row)
        if not changed:
            break
    return Rounded(codes, _refit(codes, scale, target, hessian, steps))


def _refit(
    codes: np.ndarray, scale: np.ndarray, target: np.ndarray, hessian: np.ndarray, steps: Steps
) -> np.ndarray:
    """Return the steps of least error for fixed codes; the old one where no code is left."""
    if steps == "fixed":
        return scale
    product = codes @ hessian
    above = np.sum(product * target, 2, keepdims=True)
    below = np.sum(product * codes, 2, keepdims=True)
    if steps == "shared":
        above, below = (np.full_like(part, part.sum()) for part in (above, below))
    refit = np.divide(above, below, out=scale.copy(), where=below > 0)
    return np.asarray(np.where(refit > SMALLEST_SCALE, refit, scale))
