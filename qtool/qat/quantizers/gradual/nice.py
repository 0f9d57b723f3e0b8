"""NICE: noise in place of rounding, layer after layer, and learned clamps."""

from dataclasses import KW_ONLY, replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.qat import distributed
from qtool.qat.quantizers.base import ActivationModule, WeightModule
from qtool.qat.quantizers.lsq import LSQGradient, LSQWeight, NarrowWeightQuantizer
from qtool.qat.quantizers.pact import PACTActivation
from qtool.qat.quantizers.scales import broadcast_scale
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class NICE(NarrowWeightQuantizer):
    """Noise injection: w + U[-s/2, s/2] on a share of the weights of one group of layers at a time.

    Training has as many stages as groups of layers, and one more. In stage k the weights of groups
    before k are rounded, with lsq's gradients of x and scale, those of group k have the noise, and
    those behind it are clamped alone; in the last stage all are rounded. Activations are clipped at
    a level alpha with dy/dalpha = 1 above it, as in pact, without its decay.

    Args:
        groups: of layers, in the graph's order.
        share: of the weights that have noise in a step.
    Source: Baskin et al. 2021, "NICE: Noise Injection and Clamping Estimation for Neural Network
        Quantization", sec. 3, arXiv:1810.00162. Departure: clamps start from the calibrated ranges
        instead of mean + a std.
    """

    _: KW_ONLY
    groups: int = Field(default=4, ge=1)
    share: float = Field(default=0.05, gt=0, le=1)

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return NICEWeight(params, weight, self.groups, self.share)

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return NICEActivation(params)


def uniform_noise(x: T, share: float) -> T:
    """Return numbers of U[-1/2, 1/2] at a random share of the elements, else 0, shape of x."""
    noise = (torch.rand_like(x) - 0.5) * (torch.rand_like(x) < share)
    if distributed.count() > 1:  # every process trains the same weights
        distributed.broadcast_tensors([noise])
    return noise


class NICEWeight(LSQWeight):
    """Weights that are clamped, have noise, or are rounded, by the stage of training."""

    refines = False

    def __init__(self, params: QuantParams, weight: T, groups: int, share: float) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights; only their number counts.
            groups: of layers.
            share: of the weights that have noise in a step.
        """
        params = replace(params, spec=replace(params.spec, narrow=False))
        super().__init__(params, weight, LSQGradient())
        self.groups, self.share = groups, share
        self.stages_left = 0  # until this layer is rounded; 1: it has noise

    def advance(self, share: float, depth: float) -> None:
        """Set the stage.

        Args:
            share: of training that is done, 0 to 1.
            depth: position among the layers, 0 to 1.
        """
        group = min(int(depth * self.groups), self.groups - 1)
        self.stages_left = max(group + 1 - int(share * (self.groups + 1)), 0)

    def forward(self, x: T) -> T:
        """Clamp weights, add noise to some, or round them."""
        if not self.training or not self.stages_left:
            return super().forward(x)
        spec = self.params.spec
        scale = broadcast_scale(self.scale, x, self.params)
        clamped = torch.minimum(torch.maximum(x, spec.qmin * scale), spec.qmax * scale)
        if self.stages_left > 1:
            return clamped
        return clamped + uniform_noise(x, self.share) * scale.detach()


class NICEActivation(PACTActivation):
    """PACT's activations without decay of their clipping level."""

    decays = False
