"""BinaryConnect: weights are signs, in training drawn at random on request."""

from dataclasses import KW_ONLY
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from qtool.qat import distributed
from qtool.qat.quantizers.base import WeightModule
from qtool.qat.quantizers.binary.bwn import SignWeight
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import broadcast_scale
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class BinaryConnect(NarrowWeightQuantizer):
    """w = s sign(w); in training, if stochastic, s with probability clip((w / s + 1) / 2, 0, 1).

    dL/dw is that of the rounded weight, and weights are clipped to [-s, s] after every step.
    Activations learn as in lsq.

    Args:
        stochastic: draw the signs of training at random, else take those of the weights.
    Source: Courbariaux et al. 2015, "BinaryConnect", sec. 2, arXiv:1511.00363. Departure: s is 1 in
        the paper; here the mean magnitude of the channel as training starts, which a trained
        network without BatchNorm behind a layer expects, and which does not learn.
    """

    _: KW_ONLY
    stochastic: bool = False

    starts_from_codes: ClassVar[bool] = False
    scheme: ClassVar[str] = "binary"
    trains_binary: ClassVar[bool] = True

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return BinaryConnectWeight(params, weight, self.stochastic)


def hard_sigmoid(x: T) -> T:
    """Return clip((x + 1) / 2, 0, 1)."""
    return ((x + 1) / 2).clamp(0, 1)


class BinaryConnectWeight(SignWeight):
    """Binary weights with a fixed scale, to which the weights are clipped."""

    def __init__(self, params: QuantParams, weight: T, stochastic: bool) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights that training starts from.
            stochastic: draw signs at random in training.
        """
        super().__init__(params, weight)
        self.stochastic = stochastic

    def forward(self, x: T) -> T:
        """Return signs times the scale."""
        if not (self.stochastic and self.training):
            return super().forward(x)
        scale = broadcast_scale(self.scale, x, self.params)
        draws = torch.rand_like(x)
        if distributed.count() > 1:  # every process trains the same weights
            distributed.broadcast_tensors([draws])
        positive = (draws < hard_sigmoid(x.detach() / scale)).to(x.dtype)
        return x + ((2 * positive - 1) * scale - x).detach()

    @torch.no_grad()
    def clip_weight(self, weight: T) -> None:
        """Clamp the weights to [-scale, scale]."""
        scale = broadcast_scale(self.scale, weight, self.params)
        weight.copy_(torch.minimum(torch.maximum(weight, -scale), scale))
