"""QIL: the interval of weights that is quantized learns; below it they are 0."""

from dataclasses import KW_ONLY, replace
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import WeightBase, WeightModule
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import MIN_SCALE_SHARE, broadcast_scale, plan_scale
from qtool.qat.quantizers.ste import straight_through
from qtool.quant.primitives import QuantParams

T = torch.Tensor

# Smallest base of the power, whose derivatives at 0 are not finite.
TINY = 1e-6


@dataclass(frozen=True)
class QIL(NarrowWeightQuantizer):
    """Quantization interval of center c and half width d: 0 below, saturated above, both learned.

    w = u sign(w) round(n clip(0.5 + 0.5 (|w| / u - c) / d, 0, 1)^gamma) / n, n = 2^(k-1) - 1. c, d
    and gamma belong to a layer, u to a channel: the calibrated range, which does not learn. c = d
    = 1/2 and gamma = 1 when training starts: equal steps over that range. Activations learn as in
    lsq.

    Args:
        gamma: the power learns too.
    Source: Jung et al. 2019, "Learning to Quantize Deep Networks by Optimizing Quantization
        Intervals with Task Loss", sec. 3, arXiv:1808.05779. Departures: u, which the paper leaves
        to BatchNorm; intervals of activations begin at 0, since kernels round with equal steps
        from there.
    """

    _: KW_ONLY
    gamma: bool = True

    starts_from_codes: ClassVar[bool] = False

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return QILWeight(params, self.gamma)


class QILWeight(WeightBase):
    """Weights on equal steps over a learned interval of magnitudes.

    Attributes:
        center, half_width, gamma: of the layer, shape []; in units of the range.
        scale: fixed difference between codes, shape [] or [C].
    """

    rounds_to_nearest = False
    refines = True
    scale: T

    def __init__(self, params: QuantParams, learn_gamma: bool) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            learn_gamma: the power learns.
        """
        super().__init__(replace(params, spec=replace(params.spec, narrow=True)))
        self.register_buffer("scale", torch.tensor(params.scale, dtype=torch.float32))
        self.center = nn.Parameter(torch.tensor(0.5))
        self.half_width = nn.Parameter(torch.tensor(0.5))
        self.gamma = nn.Parameter(torch.tensor(1.0), requires_grad=learn_gamma)

    def transformed(self, x: T) -> T:
        """Return weights mapped from the interval to -1 .. 1, differentiable."""
        levels = self.params.spec.qmax
        size = x.abs() / (broadcast_scale(self.scale, x, self.params) * levels)
        inside = (0.5 + 0.5 * (size - self.center) / self.half_width).clamp(0, 1)
        return x.sign() * torch.where(inside > 0, inside.clamp(min=TINY) ** self.gamma, 0.0)

    def forward(self, x: T) -> T:
        """Round weights to the grid."""
        finer = self.steps_per_code
        codes = straight_through(self.transformed(x) * self.params.spec.qmax * finer) / finer
        return codes * broadcast_scale(self.scale, x, self.params)

    def project(self) -> None:
        """Clamp the interval so that it has a width and 0 stays 0, and the power to be positive."""
        with torch.no_grad():
            self.half_width.clamp_(min=MIN_SCALE_SHARE)
            self.center.copy_(torch.maximum(self.center, self.half_width))
            self.gamma.clamp_(min=MIN_SCALE_SHARE)

    @torch.no_grad()
    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the codes of ``weight``, as floats, and the grid."""
        codes = (self.transformed(weight) * self.params.spec.qmax).round()
        return codes, replace(self.params, scale=plan_scale(self.scale, self.params))
