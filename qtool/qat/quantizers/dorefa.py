"""DoReFa: weights squeezed through tanh onto an even number of levels."""

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch

    from qtool.qat.quantizers.grids import Quantizer


@dataclass(frozen=True)
class DoReFa:
    """w = 2 q(tanh w / (2 max|tanh w|) + 1/2) - 1, with 2^k levels and none at 0.

    Activations keep their calibrated range. Layers of 8 bits, whose odd levels no int8 holds, train
    as with ste; so does a first convolution on blocks, whose kernel is filled up with zeros.

    Source: Zhou et al. 2016, "DoReFa-Net", sec. 2.3, arXiv:1606.06160. Departures: a scale per
        channel (or tensor), fitted to the weights that training starts from, which a trained
        network expects; the paper trains from scratch with none.
    """

    def weight(self, params: QuantParams, weight: "torch.Tensor") -> "Quantizer":
        """The module of one layer's weights."""
        from qtool.qat.quantizers.clipped import squeezed_weight

        return squeezed_weight(params, weight)

    def activation(self, params: QuantParams) -> "Quantizer":
        """The module of one activation grid."""
        from qtool.qat.quantizers.fixed import FixedActivation

        return FixedActivation(params)
