"""SAT: DoReFa's weights at constant variance, PACT with the whole gradient of its level."""

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from qtool.qat.quantizers.base import ActivationModule, QatQuantizer, WeightModule
from qtool.qat.quantizers.dorefa import DoReFaWeight, has_odd_levels
from qtool.qat.quantizers.lsq import LSQGradient
from qtool.qat.quantizers.pact import PACTActivation
from qtool.qat.quantizers.scales import broadcast_scale
from qtool.qat.quantizers.ste import STEWeight
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class SAT(QatQuantizer):
    """Scale-adjusted training: constant weight variance, and dy/dalpha = q - x/alpha inside.

    Above the clipping level alpha the gradient is 1, as in pact. The weights Q of every layer are
    those of dorefa times sqrt(Var[w at start] / Var[Q]), so that their variance is that of the
    weights training starts from. (A BatchNorm behind the layer cancels that factor.)

    Source: Jin, Yang and Liao 2019, "Towards Efficient Training for Neural Network Quantization",
        sec. 3 and 4, arXiv:1912.10207. Departures: the paper trains from scratch and aims at a
        variance of 1 / n_out; alpha starts from the calibrated range.
    """

    starts_from_codes: ClassVar[bool] = False
    trains_binary: ClassVar[bool] = True

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        if not has_odd_levels(params.spec):
            return STEWeight(params, follows_range=False)
        return SATWeight(params, weight)

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return SATActivation(params)


class SATWeight(DoReFaWeight):
    """DoReFa's weights, scaled at every training step so that their variance stays constant."""

    def forward(self, x: T) -> T:
        """Round weights to the levels."""
        codes = self.codes(x, self.steps_per_code)
        if self.training:
            values = codes.detach() * broadcast_scale(self.scale, x, self.params)
            # 1e-20: weights that are all equal have no variance to divide by.
            ratio = self.variance / self.counted_variance(values).clamp(min=1e-20)
            self.unit = self.unit * ratio.sqrt()
        return codes * broadcast_scale(self.scale, x, self.params)


class SATActivation(PACTActivation):
    """PACT's activations, whose level also learns from what is not clipped; without decay.

    Its scale is alpha / n, so LSQ's gradient of the scale is n (q - x/alpha) inside.
    """

    decays = False
    gradient = LSQGradient()
