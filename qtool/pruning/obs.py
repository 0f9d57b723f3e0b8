"""Optimal brain surgeon: remove weights by second-order saliency, and let the others make up."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.pruning.layer_inputs import ColumnSets, Rows, prune_in_order
from qtool.pruning.method import PrunedLayer
from qtool.ptq.second_order.hessian_rounding import asymmetric_target, damped, shrinkage
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context

# Elements of the inverse Hessians of the rows that are pruned together: 256 MB.
ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Obs:
    """Remove weights one after the other; all others of the row make up for each.

    Layer by layer, with the layers before it pruned; H = cov(x) of the layer's inputs::

        p = argmin w_p^2 / [H^-1]_pp;  w -= w_p / [H^-1]_pp H^-1[:, p]
        H^-1 -= H^-1[:, p] H^-1[p, :] / [H^-1]_pp
        b <- b + W E[x_float] - W_pruned E[x]

    What stays of a row is its least-squares solution. Layers that compute in floats, and
    ConvTranspose, are pruned by magnitude. No labels are read. Time grows with the cube of a row's
    length: a second for a layer of 64 x 576 weights, an hour for one of 512 x 4608.

    Args:
        damping: of H, as a share of its mean diagonal.
        at_once: share of a row's weights that is removed between two rounds of scores, at least
            one weight.
        samples: of the calibration data, at most.
    Source: Hassibi and Stork 1993; Frantar and Alistarh 2022, "Optimal Brain Compression", alg. 1,
        arXiv:2208.11580.
    Departure: every row of a layer has the same sparsity; a 64th of a row is removed at once, by
        the formula for sets of weights; W is the solution for the pruned network's own inputs.
    """

    _: KW_ONLY
    damping: float = Field(default=0.01, gt=0, le=1)
    at_once: float = Field(default=1 / 64, ge=0, le=1)
    samples: int = Field(default=256, ge=1)

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    gradual: ClassVar[bool] = False
    across_layers: ClassVar[bool] = False

    def __call__(
        self, plan: QuantPlan, layers: Sequence[PrunedLayer], context: Context
    ) -> QuantPlan:
        """Return the plan with masks, float arrays and biases."""
        return prune_in_order(plan, layers, context, self.samples, True, self._prune)

    def _prune(self, rows: Rows) -> np.ndarray:
        """Return the pruned weights of one layer."""
        moments = rows.moments.total
        share = shrinkage(rows.weights, rows.moments, self.damping)
        solved = asymmetric_target(rows.weights, moments, self.damping) if share else rows.weights
        target = rows.weights + share * (solved - rows.weights)
        inverse = np.linalg.inv(damped(moments.hessian, self.damping))
        step = max(1, round(self.at_once * target.shape[2]))
        pruned = target.copy()
        most = max(1, ELEMENTS // target.shape[2] ** 2)
        for group, counts in enumerate(rows.counts):
            for count in np.unique(counts):
                chosen = np.flatnonzero(counts == count)
                for part in np.split(chosen, range(most, len(chosen), most)):
                    pruned[group, part] = remove_weights(
                        target[group, part], inverse[group], int(count), rows.sets, step
                    )
        return pruned


def remove_weights(
    weights: np.ndarray,
    inverse: np.ndarray,
    count: int,
    sets: ColumnSets,
    step: int = 1,
) -> np.ndarray:
    """Return rows without ``count`` weights each, the others adjusted; removed ones are 0 exactly.

    Args:
        weights: [rows, unknowns].
        inverse: H^-1, [unknowns, unknowns].
        count: to remove of each row.
        sets: of columns.
        step: removed at once.
    """
    w = torch.from_numpy(weights.copy())
    h = torch.from_numpy(inverse).expand(len(w), -1, -1).clone()
    taken = torch.zeros(w.shape, dtype=torch.bool)
    done = 0
    while done < count:
        diagonal = torch.diagonal(h, dim1=1, dim2=2).clamp(min=torch.finfo(h.dtype).tiny)
        scores = sets.open_scores((w * w / diagonal).numpy(), taken.numpy())
        size = min(step, count - done, int(np.isfinite(scores).sum(1).min()))
        chosen = torch.from_numpy(np.argsort(scores, 1, kind="stable")[:, :size].copy())
        rows = torch.take_along_dim(h, chosen[:, :, None], 1)
        pivot = torch.take_along_dim(rows, chosen[:, None, :], 2)
        solved = torch.linalg.solve(pivot, rows)
        w -= (torch.take_along_dim(w, chosen, 1)[:, None] @ solved)[:, 0]
        h -= rows.mT @ solved
        taken.scatter_(1, chosen, True)
        w[taken] = 0
        done += size
    return np.asarray(w.numpy())
