"""Refuse pruning that a run cannot do, before any work."""

import onnx_ir as ir

from qtool.pipeline.pruning.masks import layers_to_prune, method_needs, sparsity_by_node
from qtool.pruning.method import layer_nodes
from qtool.recipe.model import Recipe
from qtool.recipe.registry import KINDS


def check_pruning_request(recipe: Recipe, train: bool) -> None:
    """Raise for what the recipe's ``pruning`` section requests and this command cannot do.

    Args:
        recipe: as it was read.
        train: the command trains.

    Raises:
        RecipeError: a schedule without training, or one that is longer than it; a method that does
            not go with a schedule, with N:M or with channels; channels with a distance of blocks.
    """
    section = recipe.pruning
    if section is None:
        return
    method = section.method.build(KINDS["pruning"].table())
    name, place = section.method.name, ("pruning", "method")
    if section.n_m is not None and method.across_layers:
        why = "N:M compares weights of one group alone; leave the option out"
        raise recipe.error(place, f"found {name} across layers with n_m: {section.n_m}; {why}")
    if section.channels is not None and "method" in section.model_fields_set:
        why = "channels are chosen by the error that removing them causes; leave method out"
        raise recipe.error(place, f"found {name} with channels: {section.channels}; {why}")
    if section.schedule is not None:
        _check_schedule(recipe, train, method.gradual)
    distill = recipe.qat.distill if recipe.qat is not None and train else None
    if section.channels is not None and distill is not None and distill.blocks:
        why = "compares outputs of blocks, which have other channels once some are removed; write 0"
        raise recipe.error(("qat", "distill", "blocks"), f"{distill.blocks:g} {why}")


def _check_schedule(recipe: Recipe, train: bool, gradual: bool) -> None:
    section, place = recipe.pruning, ("pruning", "schedule")
    if section is None or section.schedule is None:
        return
    if not gradual:
        why = "reads samples, once, before training; use magnitude, or leave schedule out"
        raise recipe.error(place, f"{section.method.name} {why}")
    if not train:
        why = "grows a sparsity in training, and `qtool ptq` does not train; leave it out, or use "
        raise recipe.error(place, f"{why}`qtool qat`")
    epochs = 0 if recipe.qat is None else recipe.qat.epochs
    if section.schedule.epochs > epochs:
        raise recipe.error(
            place,
            f"found gradual: {section.schedule.gradual}, expected at most the {epochs} of "
            "qat.epochs, or the final sparsity is never reached; shorten it, or train longer",
        )


def check_pruned_layers(recipe: Recipe, model: ir.Model, available: frozenset[str]) -> None:
    """Raise where the section does not fit the network or the samples.

    Args:
        recipe: as it was read.
        model: as it was read.
        available: requirements that are met, names from ``steps.step.NEEDS``.

    Raises:
        RecipeError: a pattern matches nothing, N:M fits no layer, or samples are missing.
    """
    section = recipe.pruning
    if section is None:
        return
    if section.channels is not None and "samples" not in available:
        why = "channels are chosen by their effect on samples; name some to calibrate"
        raise recipe.error(("pruning", "channels"), f"found synthetic samples; {why}")
    missing = sorted(method_needs(recipe) - available)
    if missing:
        why = f"needs {', '.join(missing)}; name some to calibrate, or use magnitude"
        raise recipe.error(("pruning", "method"), f"{section.method.name} {why}")
    with recipe.locate_errors():
        sparsity_by_node(section, model)
        # Weights behind a Transpose become constants by the rewrites.
        if section.channels is None and layer_nodes(model):
            layers_to_prune(section, model)
