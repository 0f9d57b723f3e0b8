"""Resolve the bits a recipe requests for each layer on a graph."""

from collections.abc import Callable

import onnx_ir as ir

from qtool.annotation.layer_patterns import nodes_matching
from qtool.errors import RecipeError
from qtool.quant.bit_widths import Bits, Widths
from qtool.recipe.model import Bits as BitsAsked
from qtool.targets.target import Target
from qtool.weights.scale_constraints import SCALES

Say = Callable[[tuple[str, ...], str], RecipeError]
"""Makes the error about one key of the recipe."""


def resolve_bits(asked: BitsAsked, model: ir.Model, target: Target, error: Say) -> Bits:
    """Resolve the layer patterns on the graph as it was read; the last match wins.

    Raises:
        RecipeError: a pattern matches nothing, or the target or the form has no such widths.
    """
    own = (
        target.weights.bits if asked.weights is None else asked.weights,
        target.activations.bits if asked.activations is None else asked.activations,
    )
    everything = _widths(("bits",), *own, target, error)
    layers: dict[str, Widths] = {}
    for pattern, layer in asked.layers.items():
        place = ("bits", "layers", pattern)
        try:
            names = nodes_matching(model, pattern)
        except RecipeError as found:
            raise error(place, str(found).removeprefix("bits.layers: ")) from found
        weights = own[0] if layer.weights is None else layer.weights
        activations = own[1] if layer.activations is None else layer.activations
        layers.update(dict.fromkeys(names, _widths(place, weights, activations, target, error)))
    scale = target.scale if asked.scale is None else asked.scale.build(SCALES).kind
    integers = any(None not in widths for widths in (everything, *layers.values()))
    if asked.scale is not None and scale != "float" and not integers:
        raise error(
            ("bits", "scale"),
            f"{asked.scale.name} is about integer layers, and none is asked for; remove the key, "
            "or write activations: 8",
        )
    granularity = asked.granularity or target.weights.granularity.name
    block = None if isinstance(granularity, str) else granularity.block
    if block is not None and (everything.activations is not None or everything.dynamic):
        raise error(
            ("bits", "granularity"),
            "integer kernels have one scale for a channel, not for a block; write "
            "activations: float, or granularity: channel",
        )
    return Bits(
        *everything,
        granularity=granularity if isinstance(granularity, str) else "block",
        block=block or 0,
        scale=scale,
        layers=layers,
    )


def _widths(
    place: tuple[str, ...], weights: int | str, activations: int | str, target: Target, error: Say
) -> Widths:
    """Numbers where the recipe has numbers, None where it says float."""
    if weights == "float" and activations != "float":
        raise error(
            place,
            f"weights: float with activations: {activations} has no kernel: codes are multiplied "
            "by codes; write weights: 8, or both float",
        )
    if activations == "dynamic" and not target.dynamic:
        raise error(
            place,
            f"activations: dynamic, but target {target.name} has no kernel that finds grids while "
            "it runs (dynamic in its file); write activations: 8, or choose another target",
        )
    for key, found in (("weights", weights), ("activations", activations)):
        lo, hi = target.widths[key]
        if not isinstance(found, str) and not lo <= int(found) <= hi:
            raise error(
                place,
                f"{key}: {found}, but target {target.name} takes {lo} to {hi} bits (widths in its "
                "file); choose one of these, float, or another target",
            )
    return Widths(
        None if isinstance(weights, str) else weights,
        None if isinstance(activations, str) else activations,
        activations == "dynamic",
    )
