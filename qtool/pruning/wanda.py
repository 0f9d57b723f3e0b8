"""Wanda: remove weights by their magnitude times the size of their input."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.pruning.layer_inputs import Rows, prune_in_order
from qtool.pruning.method import PrunedLayer
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context


@dataclass(frozen=True)
class Wanda:
    """Remove the weights of smallest magnitude times input size, within each output channel.

    score_ij = |W_ij| sqrt(E[x_j^2])

    Weights are not adjusted. Layers that compute in floats, and ConvTranspose, are pruned by
    magnitude. No labels are read.

    Args:
        samples: of the calibration data, at most.
    Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models",
        arXiv:2306.11695.
    """

    _: KW_ONLY
    samples: int = Field(default=256, ge=1)

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    gradual: ClassVar[bool] = False
    across_layers: ClassVar[bool] = False

    def __call__(
        self, plan: QuantPlan, layers: Sequence[PrunedLayer], context: Context
    ) -> QuantPlan:
        """Return the plan with masks, and with float arrays that are 0 at them."""
        return prune_in_order(plan, layers, context, self.samples, False, _prune)


def _prune(rows: Rows) -> np.ndarray:
    """Return the pruned weights of one layer."""
    size = np.sqrt(np.diagonal(rows.moments.total.hessian, axis1=1, axis2=2).clip(min=0))
    scores = np.abs(rows.weights) * size[:, None]
    pruned = rows.weights.copy()
    for group, row in np.ndindex(*rows.counts.shape):
        taken = np.zeros((1, scores.shape[2]), bool)
        while (rest := rows.counts[group, row] - int(taken.sum())) > 0:
            lowest = rows.sets.open_scores(scores[group, row][None], taken)[0]
            order = np.argsort(lowest, kind="stable")[: min(rest, len(rows.sets.columns))]
            taken[0, order] = True
        pruned[group, row][taken[0]] = 0
    return pruned
