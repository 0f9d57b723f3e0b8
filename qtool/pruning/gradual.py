"""Gradual pruning: masks that grow along a cubic curve while the network trains."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qtool.pruning.magnitude import Magnitude


def cubic(share: float) -> float:
    """Return the share of the final sparsity at a share of the schedule.

    s(t) = s_f + (s_i - s_f) (1 - t)^3 with s_i = 0, divided by s_f: 1 - (1 - t)^3

    Args:
        share: t, 0 at the beginning, 1 at the end and later.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", eq. 1, arXiv:1710.01878.
    """
    return 1 - (1 - min(max(share, 0.0), 1.0)) ** 3


@dataclass(frozen=True)
class GradualPruning:
    """Magnitude pruning at a sparsity that grows; what is pruned stays pruned.

    Attributes:
        method: chooses the masks.
        sparsity: name of the weight -> final share.
        epochs: until the final sparsity.
    """

    method: Magnitude
    sparsity: Mapping[str, float]
    epochs: int

    def __call__(self, weights: Mapping[str, np.ndarray], share: float) -> Mapping[str, np.ndarray]:
        """Return the masks by name, False where a weight becomes 0.

        Args:
            weights: by name, as the file would hold them, but for rounding.
            share: of the epochs that are done, 0 to 1.
        """
        factor = cubic(share)
        return self.method.masks(weights, {n: factor * s for n, s in self.sparsity.items()})
