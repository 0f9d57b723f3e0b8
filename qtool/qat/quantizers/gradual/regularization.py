"""Regularization: float weights are drawn to the grid by a penalty whose weight learns."""

from dataclasses import KW_ONLY

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import WeightModule
from qtool.qat.quantizers.lsq import LSQGradient, LSQWeight, NarrowWeightQuantizer
from qtool.qat.quantizers.scales import broadcast_scale
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class Regularization(NarrowWeightQuantizer):
    """The loss gets e^o R - o, R = mean (w - Q(w))^2 of a layer; o and the scale of Q learn.

    Training computes with the float weights, evaluation with rounded ones. d/do = e^o R - 1, so the
    weight e^o of the penalty grows until it is 1 / R. Activations are rounded and learn as in lsq.

    Args:
        start: e^o when training starts.
    Source: Choi, El-Khamy and Lee 2020, "Learning Sparse Low-Precision Neural Networks With
        Learnable Regularization", sec. 3, arXiv:1809.00095. Departures: a penalty for each layer,
        where the paper has one for all; o learns at the rate of the weights.
    """

    _: KW_ONLY
    start: float = Field(default=1.0, gt=0)

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return RegularizedWeight(params, weight, self.start)


class RegularizedWeight(LSQWeight):
    """Weights that train in float, with a penalty on their distance to the grid.

    Attributes:
        exponent: o, learned, shape [].
    """

    at_weight_rate = frozenset({"exponent"})
    refines = False

    def __init__(self, params: QuantParams, weight: T, start: float) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights; only their number counts.
            start: weight of the penalty when training starts.
        """
        super().__init__(params, weight, LSQGradient())
        self.exponent = nn.Parameter(torch.tensor(float(np.log(start))))

    def forward(self, x: T) -> T:
        """Return the weights as they are in training, rounded in evaluation."""
        return x if self.training else super().forward(x)

    def penalty(self, weight: T) -> T:
        """Return e^o R - o, with the mean squared distance R of weights to their nearest level."""
        spec = self.params.spec
        scale = broadcast_scale(self.scale, weight, self.params)
        codes = (weight / scale).detach().clamp(spec.qmin, spec.qmax).round()
        error = (weight - codes * scale).square().mean()
        return self.exponent.exp() * error - self.exponent
