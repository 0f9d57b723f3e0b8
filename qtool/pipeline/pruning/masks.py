"""The step that sets weights to 0 as the recipe's ``pruning`` says."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from qtool.annotation.layer_patterns import nodes_matching
from qtool.errors import RecipeError
from qtool.graph.queries import by_name
from qtool.pipeline.calibration.grids import constrain_scales, weight_scheme
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import Codebook, QuantParams, quantize
from qtool.recipe.model import Recipe
from qtool.recipe.registry import KINDS
from qtool.recipe.sections.pruning import Pruning
from qtool.steps.context import Context
from qtool.steps.guard import NamedStep
from qtool.steps.step import StepResult
from qtool.weights.grids import weight_grids

if TYPE_CHECKING:
    from qtool.pruning.gradual import GradualPruning
    from qtool.pruning.method import PrunedLayer, PruningMethod


@dataclass(frozen=True)
class MaskWeights:
    """Set weights to 0, and compute the grids of the others again.

    With a schedule every mask is still full: training prunes.

    Attributes:
        recipe: with a ``pruning`` section that names a sparsity or N:M.
        method: of the section, built with its options.
    """

    recipe: Recipe
    method: "PruningMethod"
    needs: ClassVar[frozenset[str]] = frozenset()  # those of the method are checked beforehand
    guarded: ClassVar[bool] = False  # it takes weights away: no step that comes closer to the float

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with masks.

        Raises:
            RecipeError: no layer fits the pattern, a pattern matches nothing, a grid has no 0, or a
                layer that computes in floats cannot be pruned while the network trains.
        """
        from qtool.pruning.method import with_masks

        section = _section(self.recipe)
        with self.recipe.locate_errors():
            layers, dense = layers_to_prune(section, context.model)
            _check_levels(plan, layers)
            if section.schedule is not None:
                _check_trained(plan, layers)
        if section.schedule is None:
            plan = self.method(plan, layers, context)
        else:
            full = {
                x.weight: np.ones(np.shape(plan.weight(x.weight, x.value)), bool) for x in layers
            }
            plan = with_masks(plan, layers, full)
        plan = _with_new_grids(self.recipe, context, plan)
        return StepResult(plan, tuple(_notes(plan, section, dense)))


def mask_steps(recipe: Recipe) -> list[NamedStep]:
    """Return the step that masks weights, where the recipe prunes weights."""
    section = recipe.pruning
    if section is None or section.channels is not None:
        return []
    method = section.method.build(KINDS["pruning"].table())
    return [NamedStep("pruning", MaskWeights(recipe, method), section.model_dump_json())]


def method_needs(recipe: Recipe) -> frozenset[str]:
    """Return what the pruning method needs, names from ``steps.step.NEEDS``."""
    if recipe.pruning is None:
        return frozenset()
    table = KINDS["pruning"].table()
    needs: frozenset[str] = table[recipe.pruning.method.name].needs
    return needs


def sparsity_by_node(section: Pruning, model: ir.Model) -> dict[str, float]:
    """Return node name -> sparsity of the nodes that a pattern of the section matches.

    Args:
        section: of a recipe; the last pattern that matches a node wins.
        model: the graph, as it was read or rewritten.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    sparsity: dict[str, float] = {}
    for pattern, share in section.layers.items():
        names = nodes_matching(model, pattern, ("pruning", "layers"))
        sparsity.update(dict.fromkeys(names, share))
    return sparsity


def layers_to_prune(section: Pruning, model: ir.Model) -> tuple[list["PrunedLayer"], list[str]]:
    """Return the layers to prune, and the names of those that N:M does not fit.

    Args:
        section: names a sparsity or N:M.
        model: the graph, as it was read or rewritten.

    Raises:
        RecipeError: a pattern matches nothing, or N:M fits no layer.
    """
    from qtool.pruning.masks import Pattern
    from qtool.pruning.method import pruned_layers

    pattern = None if section.n_of_m is None else Pattern(*section.n_of_m)
    default = section.sparsity if pattern is None else 1 - pattern.n / pattern.m
    return pruned_layers(model, sparsity_by_node(section, model), default or 0.0, pattern)


def gradual_pruning(recipe: Recipe, model: ir.Model) -> "GradualPruning | None":
    """Return what prunes while the network trains; None where the recipe has no schedule."""
    from qtool.pruning.gradual import GradualPruning

    section = recipe.pruning
    if section is None or section.schedule is None:
        return None
    method: Any = section.method.build(KINDS["pruning"].table())
    sparsity = {x.weight: x.sparsity for x in layers_to_prune(section, model)[0]}
    return GradualPruning(method, sparsity, section.schedule.epochs)


def _section(recipe: Recipe) -> Pruning:
    if recipe.pruning is None:
        raise AssertionError("the recipe has no pruning section")
    return recipe.pruning


def _check_levels(plan: QuantPlan, layers: "list[PrunedLayer]") -> None:
    """Refuse to prune weights of which every level is another number than 0."""
    for layer in layers:
        params = plan.params(layer.weight)
        if isinstance(params, Codebook) and len(params.levels) <= 2:
            raise RecipeError(
                f"{layer.node.name} has weights of {params.spec.bits} bit with two levels, neither "
                'of them 0; give it 2 bits or more, or leave it as it is: layers: {"name:...": 0}',
                ("pruning",),
            )


def _check_trained(plan: QuantPlan, layers: "list[PrunedLayer]") -> None:
    """Refuse to prune weights in training that do not learn."""
    for layer in layers:
        if plan.params(layer.weight) is None:
            raise RecipeError(
                f"{layer.node.name} computes in floats and does not learn, so training cannot "
                f'prune it; write layers: {{"name:{layer.node.name}": 0}}, or leave schedule out',
                ("pruning", "schedule"),
            )


def _with_new_grids(recipe: Recipe, context: Context, plan: QuantPlan) -> QuantPlan:
    """Return the plan with grids computed from the pruned weights; every grid holds 0."""
    grids, codes = dict(plan.grids), dict(plan.codes)
    for name in plan.masks:
        params = plan.params(name)
        if params is not None:
            grids[plan.grid_of[name]] = params.spec
            codes.pop(name, None)
    plan = replace(plan, grids=grids, codes=codes)
    plan = weight_grids(context.model, plan, weight_scheme(recipe, plan), context.progress)
    return constrain_scales(context, _with_zero_levels(plan, by_name(context.model.graph)))


def _with_zero_levels(plan: QuantPlan, values: Mapping[str, ir.Value]) -> QuantPlan:
    """Return the plan with 0 among the levels of every code book of pruned weights.

    The level nearest to 0 becomes 0, and weights take the nearest level again.
    """
    grids: dict[str, Any] = dict(plan.grids)
    codes = dict(plan.codes)
    for name in plan.masks:
        params = plan.params(name)
        if not isinstance(params, Codebook):
            continue
        zero = int(np.max(params.zero_point))
        if zero not in params.levels:
            levels = params.levels.copy()
            levels[np.argmin(np.abs(levels - zero))] = zero
            book: QuantParams = replace(params, levels=np.unique(levels))
            grids[plan.grid_of[name]] = book
            weights = plan.weight(name, values[name]).astype(np.float32)
            codes[name] = quantize(weights, book).astype(book.container)
    return replace(plan, grids=grids, codes=codes).masked()


def _notes(plan: QuantPlan, section: Pruning, dense: list[str]) -> list[str]:
    count = sum(mask.size for mask in plan.masks.values())
    zeros = sum(int(np.sum(~mask)) for mask in plan.masks.values())
    notes = [f"{zeros} of {count} weights of {len(plan.masks)} layers are 0"]
    if section.schedule is not None:
        notes = [f"{count} weights of {len(plan.masks)} layers are pruned while training"]
    if dense:
        listed = ", ".join(dense[:3]) + (f" and {len(dense) - 3} more" if len(dense) > 3 else "")
        notes.append(
            f"{len(dense)} layers stay dense, since {section.n_m} does not divide their input "
            f"channels: {listed}"
        )
    return notes
