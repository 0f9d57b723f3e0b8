"""The interface of pruning methods, and the layers that they prune."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import onnx_ir as ir

from qtool.errors import RecipeError
from qtool.graph.queries import WEIGHTED_OPS, dims, is_constant, is_float, name_of, rank
from qtool.pruning.masks import Pattern, divides, input_axis, n_of_m, smallest_removed
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context


@dataclass(frozen=True, eq=False)
class PrunedLayer:
    """A layer whose weights are pruned.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul with a constant weight.
        sparsity: share of the weights that becomes 0.
        pattern: N:M instead of any positions.
    """

    node: ir.Node
    sparsity: float
    pattern: Pattern | None = None

    @property
    def value(self) -> ir.Value:
        """The initializer of the weights."""
        value = self.node.inputs[1]
        if value is None:
            raise AssertionError(f"{self.node.name} has no weight")
        return value

    @property
    def weight(self) -> str:
        """Name of the initializer of the weights."""
        return name_of(self.value)

    def mask(self, scores: np.ndarray) -> np.ndarray:
        """Return the mask without the least important weights.

        Args:
            scores: importance of each weight, in the weight's shape.
        """
        if self.pattern is not None:
            return n_of_m(scores, self.pattern, input_axis(self.node))
        return smallest_removed(scores, self.sparsity)


class PruningMethod(Protocol):
    """Choose the weights that become 0; the type of the entries of PRUNING_METHODS."""

    needs: ClassVar[frozenset[str]]
    """Names from ``steps.step.NEEDS``."""
    gradual: ClassVar[bool]
    """True where the choice reads weights alone, so that training can make it again and again."""

    @property
    def across_layers(self) -> bool:
        """True where weights of several layers compete with one another, as N:M does not allow."""

    def __call__(
        self, plan: QuantPlan, layers: Sequence[PrunedLayer], context: Context
    ) -> QuantPlan:
        """Return the plan with masks, and with float arrays that are 0 at them.

        Args:
            plan: every grid is calibrated; a grid of weights is computed again afterwards.
            layers: in graph order.
            context: what the run reads.
        """


def layer_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes whose weights can be pruned, tied weights once, in graph order."""
    nodes: dict[str, ir.Node] = {}
    for node in model.graph:
        if node.op_type in WEIGHTED_OPS:
            weight = node.inputs[1]
            if is_constant(weight) and is_float(weight) and (rank(weight) or 0) >= 2:
                nodes.setdefault(name_of(weight) if weight is not None else "", node)
    return list(nodes.values())


def pruned_layers(
    model: ir.Model,
    sparsity: Mapping[str, float],
    default: float,
    pattern: Pattern | None = None,
) -> tuple[list[PrunedLayer], list[str]]:
    """Return the layers to prune, and the names of those that the pattern does not fit.

    Args:
        model: the rewritten graph.
        sparsity: node name -> share of its weights; 0 leaves a layer dense.
        default: share in all other layers.
        pattern: N:M, in all layers whose input channels m divides.

    Raises:
        RecipeError: the pattern fits no layer, or every layer is left dense.
    """
    layers, dense = [], []
    for node in layer_nodes(model):
        layer = PrunedLayer(node, sparsity.get(name_of(node), default), pattern)
        shape = tuple(int(d or 0) for d in dims(layer.value) or ())
        if layer.sparsity == 0:
            continue
        if pattern is not None and not divides(pattern, shape, node):
            dense.append(name_of(node))
            continue
        layers.append(layer)
    if pattern is not None and dense and not layers:
        raise RecipeError(
            f"{pattern}: found no layer whose number of input channels {pattern.m} divides "
            f'(among {len(dense)}), such as "{dense[0]}"; choose another pattern, or a sparsity',
            ("pruning", "n_m"),
        )
    if not layers:
        raise RecipeError(
            "no layer with weights is left to prune; every one has a sparsity of 0, or there is "
            "no Conv, Gemm or MatMul with constant weights",
            ("pruning",),
        )
    return layers, dense


def with_masks(
    plan: QuantPlan, layers: Sequence[PrunedLayer], masks: Mapping[str, np.ndarray]
) -> QuantPlan:
    """Return the plan with masks of layers, applied to their float weights.

    Args:
        plan: its weights are read.
        layers: that are pruned.
        masks: initializer name -> mask.
    """
    arrays = {layer.weight: plan.weight(layer.weight, layer.value) for layer in layers}
    zeroed = {name: np.where(masks[name], a, 0).astype(a.dtype) for name, a in arrays.items()}
    overrides = {**plan.weight_overrides, **zeroed}
    return replace(plan, masks={**plan.masks, **masks}, weight_overrides=overrides)
