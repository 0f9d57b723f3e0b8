"""The weights and grids that a quantizer trains, and the refusal of others."""

import numpy as np
import torch

from qtool.errors import RecipeError
from qtool.qat.quantizers.base import GridModule, QatQuantizer, WeightModule, Widths
from qtool.qat.settings import UNTRAINABLE_DYNAMIC
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import Codebook, QuantParams, QuantSpec
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


def sample_grids(quantizer: QatQuantizer, widths: Widths) -> list[GridModule]:
    """Return a module for weights and for activations of each width, on made-up values.

    Args:
        quantizer: with its options.
        widths: of the layers that are trained; those that it does not train are left out.
    """

    def grid(bits: int, signed: bool) -> QuantParams:
        spec = QuantSpec(bits, signed, symmetric=signed)
        return QuantParams(spec, np.array(1, np.float32), np.array(0, np.int32))

    trained, weight = trained_widths(quantizer), torch.tensor([1.0, -0.5])
    weights = [bits for bits in widths.weights if bits >= 8 or bits in trained]
    return [
        *(quantizer.weight(grid(bits, True), weight) for bits in weights),
        *(quantizer.activation(grid(bits, False)) for bits in widths.activations),
    ]


def weights_learn(module: WeightModule) -> bool:
    """Return whether the rounded weights have a gradient of the weights.

    Args:
        module: of a made-up weight, see :func:`sample_grids`.
    """
    module.eval()  # without random draws
    weight = torch.ones(2, requires_grad=True)
    gradients = torch.autograd.grad(module(weight).sum(), weight, allow_unused=True)
    return gradients[0] is not None


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
