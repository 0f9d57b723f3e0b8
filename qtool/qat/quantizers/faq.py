"""FAQ: rounding on calibrated ranges that stay, and a rate that falls exponentially."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass

from qtool.qat.quantizers.base import ActivationModule, QatQuantizer, WeightModule, Widths
from qtool.qat.quantizers.ste import STEActivation, STEWeight
from qtool.quant.primitives import QuantParams

T = torch.Tensor


@dataclass(frozen=True)
class FAQ(QatQuantizer):
    """Fine-tuning after quantization: y = round(clip(x / s, lo, hi)) s, with s from calibration.

    Gradients are those of ste. What is new is the start and the schedule, which the recipe takes
    over where it has none of its own: activations are clipped at their 99.99th percentile, and the
    rate falls exponentially to 1/1500 of the first, which is 0.0015, or 0.0001 where all layers
    have 8 bits; these train for one epoch.

    Source: McKinstry et al. 2019, "Discovering Low-precision Networks Close to Full-precision
        Networks for Efficient Embedded Inference", sec. 3, arXiv:1809.04191. Departure: below 8
        bits the ranges of weights are those of smallest squared error, and the number of epochs is
        that of every recipe, where the paper has 110.
    """

    calibrator: ClassVar[Mapping[str, Any] | None] = {"percentile": {"q": 0.9999}}

    @classmethod
    def training_defaults(cls, widths: Widths) -> Mapping[str, Any]:
        """Return schedule, rate and epochs: at 8 bits one epoch is enough."""
        own = {"lr": 1.5e-3} if widths.narrow else {"lr": 1e-4, "epochs": 1}
        return {"schedule": "exponential", **own}

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        return STEWeight(params, follows_range=False)

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return STEActivation(params)
