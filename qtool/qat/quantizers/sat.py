"""SAT: DoReFa's weights at constant variance, PACT with the whole gradient of its level."""

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch

    from qtool.qat.quantizers.grids import Quantizer


@dataclass(frozen=True)
class SAT:
    """Scale-adjusted training: weights keep their variance, levels learn from what is inside too.

    Inside the range the gradient of a clipping level is q - x/alpha. The weights of every layer are
    scaled so that their variance stays that of the weights training starts from. (A BatchNorm
    behind the layer makes that idle.)

    Source: Jin, Yang and Liao 2019, "Towards Efficient Training for Neural Network Quantization",
        sec. 3 and 4, arXiv:1912.10207. Departures: the paper trains from scratch and aims at a
        variance of 1 / n_out; alpha starts from the calibrated range.
    """

    def weight(self, params: QuantParams, weight: "torch.Tensor") -> "Quantizer":
        """The module of one layer's weights."""
        from qtool.qat.quantizers.clipped import squeezed_weight

        return squeezed_weight(params, weight, keeps_variance=True)

    def activation(self, params: QuantParams) -> "Quantizer":
        """The module of one activation grid."""
        from qtool.qat.quantizers.clipped import ClippedActivation

        return ClippedActivation(params, calibrated=True)
