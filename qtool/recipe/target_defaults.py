"""Values of a recipe that its target chooses, and requests that the target cannot fulfil."""

from typing import Any

from qtool.errors import RecipeError
from qtool.recipe.choice import read_choice
from qtool.recipe.model import Bits, Block, Output, Recipe
from qtool.recipe.presets import read_preset
from qtool.targets.target import Target

# Presets of layers whose weights have fewer than 8 bits, and of all others.
NARROW_PRESET, WIDE_PRESET = "fast", "int8"
# Rewrites besides the target's own, of layers whose inputs have fewer than 8 bits.
NARROW_REWRITES = ("equalize_activations",)
DEFAULT_SCHEME = "uniform"
# Distance to the float network, by ranges, above which `auto` is tried too.
AUTO_ABOVE = 0.01
# Fewer calibration samples say too little about a layer's inputs to compensate errors by.
MIN_SAMPLES = 32


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


def add_default_steps(recipe: Recipe, scale_kind: str, samples: int) -> Recipe:
    """Return the recipe with the repairs that it leaves to the tool.

    These are ``ptq``, ``rewrite`` and ``calibrate.auto_above``. Integer weights with equal steps
    are repaired by the preset ``fast`` where a layer has fewer than 8 bits or is pruned, else by
    ``int8``. Where their inputs have fewer than 8 bits, the ranges of activations are equalized
    first; else ranges by the default method are checked. ``ptq: []`` asks for plain rounding, and
    everything else is rounded as it is.

    Args:
        recipe: with the target's defaults.
        scale_kind: form of the scales in integer layers.
        samples: of the calibration data.
    """
    integer = _integer_widths(recipe.bits)
    equal_steps = recipe.bits.scheme.name == DEFAULT_SCHEME and scale_kind == "float"
    pruning = recipe.pruning
    pruned = pruning is not None and pruning.channels is None and pruning.schedule is None
    repaired = (bool(integer) or pruned) and equal_steps and samples >= MIN_SAMPLES
    changes: dict[str, Any] = {}
    if recipe.ptq is None:
        small = pruned or any(weights < 8 for weights, _ in integer)
        name = NARROW_PRESET if small else WIDE_PRESET
        steps = read_preset(name) if repaired else []
        changes["ptq"] = tuple(read_choice(step, "ptq", f"configs/ptq/{name}") for step in steps)
    narrow = any(activations < 8 for _, activations in integer)
    if recipe.ptq != () and repaired:
        named = {"method", "auto_above"} & recipe.calibrate.model_fields_set
        if narrow and recipe.rewrite is None:
            changes["rewrite"] = NARROW_REWRITES
        if not narrow and not named:
            checked = {"auto_above": AUTO_ABOVE}
            changes["calibrate"] = recipe.calibrate.model_copy(update=checked)
    return recipe.model_copy(update=changes)


def _integer_widths(bits: Bits) -> list[tuple[int, int]]:
    """Return the (weights, activations) that layers have, where both are numbers above 1 bit."""
    widths = [(bits.weights, bits.activations)]
    widths += [
        (layer.weights or bits.weights, layer.activations or bits.activations)
        for layer in bits.layers.values()
    ]
    return [
        (weights, activations)
        for weights, activations in widths
        if isinstance(weights, int) and weights > 1 and isinstance(activations, int)
    ]


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
