"""Values of a recipe that its target chooses, and requests that the target cannot fulfil."""

from typing import Any

from qtool.errors import RecipeError
from qtool.recipe.model import Bits, Block, Output, Recipe
from qtool.targets.target import Target


def apply_target_defaults(recipe: Recipe, target: Target) -> Recipe:
    """Return the recipe with the target's widths, granularity, format and opset where it has none.

    Args:
        recipe: absent values are None.
        target: the one that the recipe names.

    Raises:
        RecipeError: a request that the target cannot fulfil; names the key and the possible values.
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
    resolved = recipe.model_copy(update=parts)
    with recipe.locate_errors():
        _check_output(resolved.output, target)
        _check_granularity(resolved.bits, target)
        _check_qonnx(resolved.output, resolved.bits)
    return resolved


def _check_output(output: Output, target: Target) -> None:
    if output.format not in target.formats:
        raise RecipeError(
            f"{output.format}, but target {target.name} reads {', '.join(target.formats)}; choose "
            "one of these, or another target",
            ("output", "format"),
        )
    oldest, newest = target.opsets
    if output.opset is None or not oldest <= output.opset <= newest:
        raise RecipeError(
            f"{output.opset}, but target {target.name} reads opsets {oldest} to {newest}; choose "
            "one of these",
            ("output", "opset"),
        )


def _check_granularity(bits: Bits, target: Target) -> None:
    granularity = "block" if isinstance(bits.granularity, Block) else bits.granularity
    if granularity not in target.granularities:
        raise RecipeError(
            f"{granularity}, but target {target.name} takes {', '.join(target.granularities)}; "
            "choose one of these, or another target",
            ("bits", "granularity"),
        )


def _check_qonnx(output: Output, bits: Bits) -> None:
    if output.format != "qonnx":
        return
    if "dynamic" in (bits.activations, *(layer.activations for layer in bits.layers.values())):
        raise RecipeError(
            "qonnx holds grids that are fixed beforehand, not those of activations: dynamic; write "
            "format: qdq",
            ("output", "format"),
        )
    if output.io == "quantized":
        raise RecipeError(
            "a qonnx file computes on values, it has no codes to read or write; write io: float, "
            "or format: qdq",
            ("output", "io"),
        )
