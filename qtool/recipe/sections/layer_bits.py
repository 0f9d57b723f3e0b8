"""Resolve the bits a recipe requests for each layer on a graph."""

import onnx_ir as ir

from qtool.annotation.layer_patterns import nodes_matching
from qtool.errors import KeyPath, RecipeError
from qtool.quant.bit_widths import Bits, Widths
from qtool.recipe.model import Bits as RequestedBits
from qtool.targets.target import Target
from qtool.weights.scale_constraints import SCALES


def resolve_bits(requested: RequestedBits, model: ir.Model, target: Target) -> Bits:
    """Resolve the layer patterns on the graph as it was read; the last match wins.

    Args:
        requested: the recipe's ``bits``; absent widths, granularity and scales are the target's.
        model: the graph before any rewrite.
        target: whose widths and kernels limit the request.

    Raises:
        RecipeError: a pattern matches nothing, or the target or the format has no such widths;
            with the key, see ``Recipe.locate_errors``.
    """
    if requested.budget is not None:
        raise RecipeError(
            "`qtool ptq` and `qtool qat` choose the widths; run one of these first: its run folder "
            "holds the recipe with the widths instead of the budget",
            ("bits", "budget"),
        )
    own = (
        target.weights.bits if requested.weights is None else requested.weights,
        target.activations.bits if requested.activations is None else requested.activations,
    )
    default = _widths(("bits",), *own, target)
    layers: dict[str, Widths] = {}
    for pattern, layer in requested.layers.items():
        key = ("bits", "layers", pattern)
        names = nodes_matching(model, pattern)
        weights = own[0] if layer.weights is None else layer.weights
        activations = own[1] if layer.activations is None else layer.activations
        layers.update(dict.fromkeys(names, _widths(key, weights, activations, target)))
    scale = _scale_kind(requested, target, (default, *layers.values()))
    granularity = requested.granularity or target.weights.granularity.name
    block = None if isinstance(granularity, str) else granularity.block
    if block is not None and (default.activations is not None or default.dynamic):
        raise RecipeError(
            "integer kernels have one scale for a channel, not for a block; write "
            "activations: float, or granularity: channel",
            ("bits", "granularity"),
        )
    return Bits(
        *default,
        granularity=granularity if isinstance(granularity, str) else "block",
        block=block or 0,
        scale=scale,
        layers=layers,
    )


def _scale_kind(requested: RequestedBits, target: Target, widths: tuple[Widths, ...]) -> str:
    """Return the form of the scales; refuse one that no layer would have."""
    if requested.scale is None:
        return target.scale
    kind = requested.scale.build(SCALES).kind
    if kind != "float" and all(None in each for each in widths):
        raise RecipeError(
            f"{requested.scale.name} is about integer layers, and none is requested; remove the "
            "key, or write activations: 8",
            ("bits", "scale"),
        )
    return str(kind)


def _widths(key: KeyPath, weights: int | str, activations: int | str, target: Target) -> Widths:
    """Check two widths against the target: numbers stay, ``float`` becomes None."""
    if weights == "float" and activations != "float":
        raise RecipeError(
            f"weights: float with activations: {activations} has no kernel: codes are multiplied "
            "by codes; write weights: 8, or both float",
            key,
        )
    if activations == "dynamic" and not target.dynamic:
        raise RecipeError(
            f"activations: dynamic, but target {target.name} has no kernel that finds grids while "
            "it runs (dynamic in its file); write activations: 8, or choose another target",
            key,
        )
    for name, width in (("weights", weights), ("activations", activations)):
        lo, hi = target.widths[name]
        if not isinstance(width, str) and not lo <= int(width) <= hi:
            raise RecipeError(
                f"{width}, but target {target.name} takes {lo} to {hi} bits (widths in its file); "
                "choose one of these, float, or another target",
                (*key, name),
            )
    return Widths(
        None if isinstance(weights, str) else weights,
        None if isinstance(activations, str) else activations,
        activations == "dynamic",
    )
