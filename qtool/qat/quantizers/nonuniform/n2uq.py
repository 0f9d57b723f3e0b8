"""N2UQ: the limits between codes learn, the codes stay evenly spaced."""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import CodebookBase, WeightModule, ZeroLevel
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import broadcast_scale, channel_magnitude
from qtool.qat.quantizers.ste import straight_through
from qtool.quant.primitives import QuantParams

T = torch.Tensor

# Shortest segment, where equal ones are 1 long: gradients are divided by the length.
SHORTEST = 1 / 8


@dataclass(frozen=True)
class N2UQ(NarrowWeightQuantizer):
    """Nonuniform to uniform: code i where w is between thresholds T_i and T_(i+1), which learn.

    The weights, divided by a (2^k - 1) / 2^(k-1) mean |w| of their channel, lie on n = 2^k - 1
    segments of learned lengths a_i, one set for a layer; a threshold is the middle of a segment.
    G-STE: in segment i dy/dw = 1 / a_i, and gradients reach the lengths through the same line. The
    levels -n, 2 - n .. n are evenly spaced. Activations learn as in lsq.

    Source: Liu et al. 2022, "Nonuniform-to-Uniform Quantization", sec. 3, arXiv:2111.14826.
        Departure: the paper's thresholds are those of activations, which kernels round with equal
        steps; here those of weights learn.
    """

    starts_from_codes: ClassVar[bool] = False
    reads_scheme: ClassVar[bool] = False
    trains_binary: ClassVar[bool] = True

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return N2UQWeight(params, weight)


def piecewise_linear(x: T, start: T, lengths: T) -> T:
    """Return i + (x - T_i) / a_i in segment i of length a_i, clipped to 0 .. n; differentiable.

    Args:
        x: any shape.
        start: where the first segment begins, shape [].
        lengths: a, positive [n].
    """
    count = len(lengths)
    edges = start + F.pad(lengths.cumsum(0), (1, 0))
    index = torch.bucketize(x.detach(), edges[1:-1].detach(), right=True)
    # Gradients of an embedding are summed over equal indices.
    table = torch.stack([edges[:-1], lengths], 1)
    begin, length = F.embedding(index, table).unbind(-1)
    return (index + (x - begin) / length).clamp(0, count)


class N2UQWeight(CodebookBase):
    """Weights with learned thresholds and evenly spaced levels.

    Attributes:
        start: where the first segment begins, learned, shape [].
        lengths: of the segments, learned [n].
        scale: half the difference between neighbouring levels, shape [] or [C].
    """

    follows_range = True
    scale: T

    def __init__(self, params: QuantParams, weight: T) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights that training starts from.
        """
        super().__init__(params)
        self.count = 2**params.spec.bits - 1
        self.start = nn.Parameter(torch.zeros(()))
        self.lengths = nn.Parameter(torch.ones(self.count))
        self.register_buffer("scale", torch.ones(params.scale.shape))
        self.update_range(weight)

    @torch.no_grad()
    def update_range(self, weight: T) -> None:
        """Set the scale so that the levels are used about equally often."""
        mean = channel_magnitude(weight, self.params)
        self.scale = mean / 2 ** (self.params.spec.bits - 1)

    def codes(self, x: T) -> T:
        """Return the odd codes -n .. n of weights, differentiable."""
        steps = x / (2 * broadcast_scale(self.scale, x, self.params)) + self.count / 2
        return 2 * straight_through(piecewise_linear(steps, self.start, self.lengths)) - self.count

    def forward(self, x: T) -> T:
        """Round weights to the levels."""
        if self.training:
            self.update_range(x.detach())
        return self.codes(x) * broadcast_scale(self.scale, x, self.params)

    def project(self) -> None:
        """Clamp the lengths to positive values."""
        with torch.no_grad():
            self.lengths.clamp_(min=SHORTEST)

    @torch.no_grad()
    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the odd codes of ``weight``, as floats, and their code book."""
        odd = np.arange(-self.count, self.count + 1, 2)
        return self.codes(weight), self.codebook(self.scale, odd)

    def with_zero_level(self) -> WeightModule:
        """Return a module with the level 0 for weights that are exactly 0."""
        return ZeroLevel(self)
