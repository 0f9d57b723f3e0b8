"""APoT: weights are sums of powers of two within a learned range."""

from typing import ClassVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import CodebookBase, WeightModule
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import MIN_SCALE_SHARE, broadcast_scale, clamp_below, raw_tensor
from qtool.quant.primitives import Codebook, QuantParams, quantize
from qtool.weights.apot import APoT, apot_levels, unit_grid

T = torch.Tensor


@dataclass(frozen=True)
class AdditivePowersOfTwo(NarrowWeightQuantizer):
    """w = s L(w / s), L the nearest sum of powers of two; dw/ds = L - w / s inside, L outside.

    The scales s of channels learn; the range is s times the highest level. Activations learn as in
    lsq.

    Source: Li, Dong and Wang 2020, "Additive Powers-of-Two Quantization", sec. 2.2 and 2.3 (RCF),
        arXiv:1909.13144. Departures: gradients of scales times 1 / sqrt(N * highest level) as in
        lsq, in place of normalized weights; levels of activations are evenly spaced, as kernels
        round them.
    """

    starts_from_codes: ClassVar[bool] = False
    scheme: ClassVar[str] = "apot"

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return APoTWeight(params, weight)


class APoTWeight(CodebookBase):
    """Weights on sums of powers of two, with learned scales.

    Attributes:
        scale: learned, shape [] or [C].
        floor: lowest value of the scale, same shape.
    """

    floor: T

    def __init__(self, params: QuantParams, weight: T) -> None:
        """Make the module.

        Args:
            params: grid that training starts from; that of bits.scheme: apot, or equal steps.
            weight: the weights that training starts from.
        """
        super().__init__(params)
        self.levels = apot_levels(params.spec.bits)
        self.unit = unit_grid(params.spec, self.levels)
        if not isinstance(params, Codebook) or not np.array_equal(params.levels, self.levels):
            params, _ = APoT()(weight.detach().cpu().numpy(), params.spec)
        self.scale = nn.Parameter(torch.tensor(params.scale, dtype=torch.float32))
        self.register_buffer("floor", self.scale.detach() * MIN_SCALE_SHARE, persistent=False)
        count = weight.numel() // self.scale.numel()
        self.scale_gradient_factor = float(1 / np.sqrt(count * float(self.levels[-1])))

    def codes(self, steps: T) -> T:
        """Return the level nearest to each weight divided by its scale."""
        codes: T = quantize(steps, self.unit)
        return codes

    def forward(self, x: T) -> T:
        """Round weights to the levels."""
        factor, top = self.scale_gradient_factor, float(self.levels[-1])
        scale = self.scale * factor + (self.scale * (1 - factor)).detach()
        scale = broadcast_scale(scale, x, self.params)
        steps = (x / scale).clamp(-top, top)
        return (steps + (self.codes(steps.detach()) - steps).detach()) * scale

    def project(self) -> None:
        """Clamp the scales to positive values."""
        clamp_below(raw_tensor(self, "scale"), self.floor)

    @torch.no_grad()
    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the level of each weight, as floats, and the code book."""
        scale = broadcast_scale(self.scale, weight, self.params)
        return self.codes(weight / scale), self.codebook(self.scale, self.levels)
