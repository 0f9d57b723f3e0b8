"""What a recipe leaves to its target, and what it asks of it in vain."""

from typing import Any

from qtool.recipe.model import Block, Recipe
from qtool.targets.target import Target


def settle(recipe: Recipe, target: Target) -> Recipe:
    """The recipe with the target's own widths, granularity, format and opset where it names none.

    Raises:
        RecipeError: it asks for what the target cannot do; names the key and what is possible.
    """
    bits, output = recipe.bits, recipe.output
    grids: dict[str, Any] = {
        "weights": target.weights.bits,
        "activations": target.activations.bits,
        "granularity": target.weights.granularity.name,
    }
    form: dict[str, Any] = {"format": target.formats[0], "opset": target.opset}
    parts = {
        name: part.model_copy(update={k: v for k, v in own.items() if getattr(part, k) is None})
        for name, part, own in (("bits", bits, grids), ("output", output, form))
    }
    found = recipe.model_copy(update=parts)
    _check(found, target)
    return found


def _check(recipe: Recipe, target: Target) -> None:
    output, asked = recipe.output, recipe.bits.granularity
    if output.format not in target.formats:
        raise recipe.error(
            ("output", "format"),
            f"{output.format}, but target {target.name} reads {', '.join(target.formats)}; choose "
            "one of these, or another target",
        )
    oldest, newest = target.opsets
    if output.opset is None or not oldest <= output.opset <= newest:
        raise recipe.error(
            ("output", "opset"),
            f"{output.opset}, but target {target.name} reads opsets {oldest} to {newest}; choose "
            "one of these",
        )
    granularity = "block" if isinstance(asked, Block) else asked
    if granularity not in target.granularities:
        raise recipe.error(
            ("bits", "granularity"),
            f"{granularity}, but target {target.name} takes {', '.join(target.granularities)}; "
            "choose one of these, or another target",
        )
    widths = (recipe.bits.activations, *(each.activations for each in recipe.bits.layers.values()))
    if output.format == "qonnx" and "dynamic" in widths:
        raise recipe.error(
            ("output", "format"),
            "qonnx holds grids that are known beforehand, not those of activations: dynamic; write "
            "format: qdq",
        )
    if output.format == "qonnx" and output.io == "quantized":
        raise recipe.error(
            ("output", "io"),
            "a qonnx file computes on values, it has no codes to read or write; write io: float, "
            "or format: qdq",
        )
