"""Magnitude pruning: the smallest weights become 0."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from qtool.pruning.masks import smallest_removed, smallest_removed_globally
from qtool.pruning.method import PrunedLayer, with_masks
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context


@dataclass(frozen=True)
class Magnitude:
    """Remove the weights of smallest magnitude.

    w = 0 where |w| is among the round(sparsity x count) smallest

    Weights count as the file holds them, with BatchNorm folded in. The sparsities of ``layers`` in
    the recipe hold for their layers in both scopes.

    Args:
        scope: ``layer``: the same share of each layer; ``global``: one limit for all layers
            together, each magnitude divided by the root mean square of its layer.
    Source: Han et al. 2015, sec. 3, arXiv:1506.02626; Zhu and Gupta 2017, arXiv:1710.01878.
    Departure: the division by the root mean square: layers differ in scale by what surrounds them.
    """

    _: KW_ONLY
    scope: Literal["layer", "global"] = "layer"

    needs: ClassVar[frozenset[str]] = frozenset()
    gradual: ClassVar[bool] = True

    @property
    def across_layers(self) -> bool:
        """True for one limit for several layers."""
        return self.scope == "global"

    def __call__(
        self, plan: QuantPlan, layers: Sequence[PrunedLayer], context: Context
    ) -> QuantPlan:
        """Return the plan with masks, and with float arrays that are 0 at them."""
        weights = {layer.weight: plan.weight(layer.weight, layer.value) for layer in layers}
        if any(layer.pattern is not None for layer in layers):
            masks = {layer.weight: layer.mask(np.abs(weights[layer.weight])) for layer in layers}
        else:
            masks = self.masks(weights, {layer.weight: layer.sparsity for layer in layers})
        return with_masks(plan, layers, masks)

    def masks(
        self, weights: Mapping[str, np.ndarray], sparsity: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """Return the masks by name.

        Args:
            weights: by name, as the file holds them.
            sparsity: by name; with the scope ``global`` one limit holds for all of one sparsity.
        """
        scores = {name: np.abs(weights[name]) for name in sparsity}
        if self.scope == "layer":
            return {n: smallest_removed(scores[n], share) for n, share in sparsity.items()}
        masks: dict[str, np.ndarray] = {}
        for share in dict.fromkeys(sparsity.values()):
            names = [name for name in sparsity if sparsity[name] == share]
            relative = {name: scores[name] / _root_mean_square(scores[name]) for name in names}
            masks |= smallest_removed_globally(relative, share)
        return masks


def _root_mean_square(array: np.ndarray) -> float:
    """Return sqrt(mean x^2); 1 where all are 0."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) or 1.0
