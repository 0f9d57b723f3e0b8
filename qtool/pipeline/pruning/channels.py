"""Remove channels from the rewritten graph, as the recipe's ``pruning.channels`` says."""

import onnx_ir as ir

from qtool.graph.original import store_original
from qtool.pipeline.pruning.masks import sparsity_by_node
from qtool.recipe.model import Recipe
from qtool.report.sparsity_schema import ChannelSparsity
from qtool.rewrites.cleanup import remove_identities
from qtool.steps.context import Context

_REMOVED = "removed_channels"


def shrink(recipe: Recipe, context: Context) -> list[str]:
    """Remove channels in place, where the recipe says so; return a note for the report.

    Args:
        recipe: with or without a ``pruning`` section.
        context: its graph has folded BatchNorms, and convolutions in the form of the model.

    Raises:
        UnsupportedError: no channel can be removed.
        RecipeError: the share cannot be reached.
    """
    section = recipe.pruning
    if section is None or section.share is None:
        return []
    from qtool.pruning.channel_choice import choose_channels
    from qtool.pruning.channels import removable_channels
    from qtool.pruning.shrink import remove_channels

    model = context.model
    fixed = sparsity_by_node(section, model)  # a share of its own can only be 0
    channels = removable_channels(model.graph, fixed)
    with recipe.locate_errors():
        choice = choose_channels(context, channels, section.share)
    counts = choice.counts
    store_original(model)
    model.meta[_REMOVED] = counts
    remove_channels(model, channels, choice.stays)
    # Behind a sum without its branch, Relu reads what another Relu limited; integer kernels compute
    # none alone.
    remove_identities(model, context.bits.integer)
    return [
        f"channels: {counts.removed} of {counts.channels} removed, "
        f"{1 - counts.macs / counts.float_macs:.1%} of the multiply-accumulates"
    ]


def removed_channels(model: ir.Model) -> ChannelSparsity | None:
    """Return the counts of removed channels; None where none were removed."""
    counts: ChannelSparsity | None = model.meta.get(_REMOVED)
    return counts
