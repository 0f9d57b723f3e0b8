"""BWN: weights are their signs times the mean magnitude of the channel."""

from dataclasses import KW_ONLY
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch.autograd.function import once_differentiable

from qtool.qat.quantizers.base import CodebookBase, WeightModule, ZeroLevel
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import broadcast_scale, channel_magnitude, scale_rows
from qtool.quant.primitives import QuantParams
from qtool.weights.grouping import counted_positions

T = torch.Tensor

BINARY = np.array([-1, 1])


@dataclass(frozen=True)
class BWN(NarrowWeightQuantizer):
    """w = a sign(w), a = mean |w| of the channel at every step; sign(0) = 1.

    Activations learn as in lsq.

    Args:
        gradient: of the weights, g being that of the rounded weight: ``straight_through``: g;
            ``paper``: (1 / n + a) g, with n weights in a channel, and g / n where |w| > 1, which
            suits Adam alone, as a is small.
    Source: Rastegari et al. 2016, "XNOR-Net", sec. 3.1, arXiv:1603.05279.
    """

    _: KW_ONLY
    gradient: Literal["straight_through", "paper"] = "straight_through"

    starts_from_codes: ClassVar[bool] = False
    scheme: ClassVar[str] = "binary"
    trains_binary: ClassVar[bool] = True

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return BWNWeight(params, weight, self.gradient == "paper")


def signs(x: T) -> T:
    """Return 1 where x >= 0, else -1, in the type of x."""
    return (x >= 0).to(x.dtype) * 2 - 1


class SignWeight(CodebookBase):
    """Weights that are their signs times a scale.

    Attributes:
        scale: shape [] or [C].
    """

    scale: T

    def __init__(self, params: QuantParams, weight: T) -> None:
        """Make the module, with the mean magnitude of each channel as its scale.

        Args:
            params: grid that training starts from.
            weight: the weights that training starts from.
        """
        super().__init__(params)
        self.register_buffer("scale", channel_magnitude(weight.detach(), params))

    def forward(self, x: T) -> T:
        """Return signs times the scale; the gradient is that of the identity."""
        rounded = signs(x) * broadcast_scale(self.scale, x, self.params)
        return x + (rounded - x).detach()

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the signs of ``weight``, as floats, and the code book -1, 1."""
        return signs(weight.detach()), self.codebook(self.scale, BINARY)

    def with_zero_level(self) -> WeightModule:
        """Return a module with the level 0 for weights that are exactly 0."""
        return ZeroLevel(self)


class BWNWeight(SignWeight):
    """Binary weights whose scale follows the weights."""

    follows_range = True

    def __init__(self, params: QuantParams, weight: T, paper_gradient: bool) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
            weight: the weights that training starts from.
            paper_gradient: use the gradient of the paper's authors.
        """
        super().__init__(params, weight)
        self.paper_gradient = paper_gradient

    @torch.no_grad()
    def update_range(self, weight: T) -> None:
        """Set the scale to the mean magnitude of the weights."""
        self.scale = channel_magnitude(weight, self.params)

    def forward(self, x: T) -> T:
        """Return signs times the mean magnitude."""
        if self.training:
            self.update_range(x)
        if not self.paper_gradient:
            return super().forward(x)
        count = counted_positions(scale_rows(x, self.params)).sum()
        rounded: T = _ScaledSign.apply(x, broadcast_scale(self.scale, x, self.params), count)
        return rounded


class _ScaledSign(torch.autograd.Function):
    """The sign times its scale, with the gradient g (1 / n + a [|w| <= 1]).

    Source: Rastegari et al. 2016, sec. 3.1 (training), arXiv:1603.05279.
    """

    @staticmethod
    def forward(ctx: Any, x: T, scale: T, count: T) -> T:
        ctx.save_for_backward(x, scale, count)
        return signs(x) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: T) -> tuple[T, None, None]:
        x, scale, count = ctx.saved_tensors
        return dy * (1 / count + scale * (x.abs() <= 1)), None, None
