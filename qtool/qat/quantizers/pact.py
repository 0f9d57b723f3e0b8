"""PACT: the clipping level of activations learns."""

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch

    from qtool.qat.quantizers.grids import Quantizer


@dataclass(frozen=True)
class PACT:
    """Activations are clipped at a learned level alpha, whose gradient is that of what it clips.

    Weights are those of dorefa. Weight decay applies to alpha, as in the paper. On a grid with a
    zero point the lower end moves with alpha.

    Source: Choi et al. 2018, "PACT", sec. 3, arXiv:1805.06085. Departure: alpha starts from the
        calibrated range instead of 10.
    """

    def weight(self, params: QuantParams, weight: "torch.Tensor") -> "Quantizer":
        """The module of one layer's weights."""
        from qtool.qat.quantizers.clipped import squeezed_weight

        return squeezed_weight(params, weight)

    def activation(self, params: QuantParams) -> "Quantizer":
        """The module of one activation grid."""
        from qtool.qat.quantizers.clipped import ClippedActivation

        return ClippedActivation(params, calibrated=False)
