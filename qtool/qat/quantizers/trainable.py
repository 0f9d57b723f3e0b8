"""The weights and grids that a quantizer trains, and the refusal of others."""

from qtool.errors import RecipeError
from qtool.qat.quantizers.base import QatQuantizer
from qtool.qat.settings import UNTRAINABLE_DYNAMIC
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import Codebook
from qtool.weights import SCHEMES


def trained_widths(entry: QatQuantizer | type[QatQuantizer]) -> frozenset[int]:
    """Return the bits below 8 of weights that an entry of QAT_QUANTIZERS trains.

    Args:
        entry: the entry, with options or without.
    """
    fixed = SCHEMES[entry.scheme].fixed_bits
    if fixed is not None:
        return frozenset({fixed})
    return frozenset(range(1 if entry.trains_binary else 2, 8))


def check_trainable(plan: QuantPlan, quantizer: QatQuantizer) -> None:
    """Refuse grids that the quantizer does not train, or the file could not hold.

    Args:
        plan: calibrated.
        quantizer: with its options.

    Raises:
        RecipeError: names the weights, and what is expected.
    """
    widths = trained_widths(quantizer)
    constants = {site.weight or "" for site in plan.sites.values()} | plan.weight_only
    for name in sorted(constants & plan.grid_of.keys()):
        grid = plan.qparams(name)
        bits = grid.spec.bits
        if bits < 8 and bits not in widths:
            expected = " or ".join(str(width) for width in sorted({*widths, 8}))
            raise RecipeError(
                f'the weights "{name}" have {bits} bits; {type(quantizer).__name__} trains weights '
                f"of {expected} bits"
            )
        if isinstance(grid, Codebook) and bits > 1 and quantizer.scheme == "uniform":
            raise RecipeError(
                f'the weights "{name}" have a code book; {type(quantizer).__name__} trains equal '
                "steps; expected bits.scheme: uniform, or a quantizer of code books"
            )
    if plan.dynamic:
        raise RecipeError(UNTRAINABLE_DYNAMIC)
