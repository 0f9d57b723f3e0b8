"""XNOR: weights and activations of 1 bit, and the approximate gradient of a step."""

import dataclasses
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from qtool.qat.quantizers.base import ActivationModule, WeightModule, Widths
from qtool.qat.quantizers.binary.bwn import BWNWeight
from qtool.qat.quantizers.learned_step import RoundedStep
from qtool.qat.quantizers.lsq import LSQActivation, LSQGradient, NarrowWeightQuantizer
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class XNOR(NarrowWeightQuantizer):
    """Both operands of a product have 1 bit: w = a sign(w), a = mean |w|; x = s where x > s / 2.

    x has the codes 0 and 1: sign(x - s/2) is 2 codes - 1, and the bias holds what that adds to a
    sum. Integer kernels multiply them as codes of 8 bits; hardware counts bits,
    sum a b = 2 popcount(xnor(a, b)) - n for signs. s, and with it the threshold, learns as in lsq.

    Args:
        gradient: of activations of 1 bit: ``approx_sign``: 2 - 2 |v| with v = 2 x / s - 1, 0 where
            |v| > 1; ``straight_through``: 1 there.
    Source: Rastegari et al. 2016, "XNOR-Net", sec. 3.2, arXiv:1603.05279; Liu et al. 2018,
        "Bi-Real Net", sec. 3.3 (ApproxSign), arXiv:1808.00278; Liu et al. 2020, "ReActNet", sec.
        4.2 (learned threshold), arXiv:2003.03488. Departures: one scale s in place of the map K of
        local means; a threshold per tensor; padding is code 0, the sign -1.
    """

    _: KW_ONLY
    gradient: Literal["approx_sign", "straight_through"] = "approx_sign"

    starts_from_codes: ClassVar[bool] = False
    scheme: ClassVar[str] = "binary"
    trains_binary: ClassVar[bool] = True

    @classmethod
    def unread(cls, options: Mapping[str, Any], widths: Widths) -> Mapping[str, str]:
        """Return ``gradient`` where no activations have 1 bit."""
        return {} if 1 in widths.activations else dict.fromkeys(options, "activations of 1 bit")

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return BWNWeight(params, weight, paper_gradient=False)

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        approximate = params.spec.bits == 1 and self.gradient == "approx_sign"
        return LSQActivation(params, ApproxSignGradient() if approximate else LSQGradient())


@dataclasses.dataclass(frozen=True)
class ApproxSignGradient(LSQGradient):
    """Gradient of x on a grid of two codes: a triangle over the step, of the step's area.

    Source: Liu et al. 2018, eq. 6, arXiv:1808.00278.
    """

    def output_gradient(self, dy: T, rounded: RoundedStep) -> T:
        """Return dy (2 - 2 |v|), v from -1 to 1 between the two codes; dy on a finer grid.

        Args:
            dy: gradient of the output.
            rounded: the forward pass.
        """
        if rounded.hi - rounded.lo > 1:
            return dy
        v = 2 * (rounded.steps - rounded.lo) - 1
        return dy * (2 - 2 * v.abs()).clamp(min=0)


def popcount_dot(a: np.ndarray, b: np.ndarray) -> int:
    """Return the dot product of two vectors of signs, computed on packed bits.

    sum a b = 2 popcount(xnor(a, b)) - n; the bits that fill up the last byte are equal in both
    operands, so their count is subtracted.

    Args:
        a: -1 and 1, [n].
        b: -1 and 1, [n].
    """
    packed = [np.packbits(signs > 0) for signs in (a, b)]
    filled = 8 * len(packed[0]) - len(a)
    equal = int(np.unpackbits(~(packed[0] ^ packed[1])).sum()) - filled
    return 2 * equal - len(a)
