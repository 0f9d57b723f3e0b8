"""DoReFa: weights pass tanh and are rounded to an even number of levels."""

from typing import ClassVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from qtool.qat.quantizers.base import (
    ActivationModule,
    QatQuantizer,
    WeightBase,
    WeightModule,
    ZeroLevel,
)
from qtool.qat.quantizers.scales import broadcast_scale, per_scale, plan_scale, scale_rows
from qtool.qat.quantizers.ste import STEActivation, STEWeight, straight_through
from qtool.quant.primitives import SMALLEST_SCALE, Codebook, QuantParams, QuantSpec
from qtool.weights.grouping import counted_positions

T = torch.Tensor


@dataclass(frozen=True)
class DoReFa(QatQuantizer):
    """w = 2 q(tanh w / (2 max|tanh w|) + 1/2) - 1, with 2^k levels and none at 0.

    q(v) = round(v (2^k - 1)) / (2^k - 1). Activations keep their calibrated range. Layers of 8
    bits, whose odd levels int8 cannot hold, train as with ste; so does a first convolution on
    blocks, whose kernel is filled up with zeros.

    Source: Zhou et al. 2016, "DoReFa-Net", sec. 2.3, arXiv:1606.06160. Departures: a scale per
        channel (or tensor), fitted to the weights that training starts from, which a trained
        network expects; the paper trains from scratch with none.
    """

    starts_from_codes: ClassVar[bool] = False
    trains_binary: ClassVar[bool] = True

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights."""
        if not has_odd_levels(params.spec):
            return STEWeight(params, follows_range=False)
        return DoReFaWeight(params, weight)

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid."""
        return STEActivation(params)


def has_odd_levels(spec: QuantSpec) -> bool:
    """Return whether int8 holds the codes -(2^k - 1), ..., -1, 1, ..., 2^k - 1 of DoReFa."""
    return spec.bits < 8


class DoReFaWeight(WeightBase):
    """Weights through tanh on 2^k levels -1 .. 1 without 0, times a scale that does not learn.

    Attributes:
        unit: value of the level 1, shape [] or [C].
        variance: of the weights that training starts from, shape [].
        positions: of weights that do not fill up the kernel, in :func:`scale_rows`, int64.
    """

    rounds_to_nearest = False
    scale_tensor: str | None = "unit"
    refines = True
    unit: T
    variance: T
    positions: T

    def __init__(self, params: QuantParams, weight: T) -> None:
        """Make the module.

        Args:
            params: grid that training starts from; of less than 8 bits.
            weight: the layer's weights as training starts.
        """
        super().__init__(params)
        self.steps = 2**params.spec.bits - 1
        self.steps_of_scale = float(self.steps)
        start = weight.detach()
        positions = counted_positions(scale_rows(start, params)).nonzero().flatten()
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("variance", self.counted_variance(start))
        weights, levels = (
            scale_rows(x, params)[:, positions]
            for x in (start, self.codes(start).detach() / self.steps)
        )
        # Least squares per channel: unit = sum(w l) / sum(l^2) brings unit * l closest to w.
        unit = (weights * levels).sum(1) / levels.square().sum(1)
        self.register_buffer("unit", per_scale(unit.clamp(min=SMALLEST_SCALE * self.steps), params))

    def counted_variance(self, weight: T) -> T:
        """Return the variance of the weights that do not fill up the kernel, shape []."""
        return scale_rows(weight, self.params)[:, self.positions].var(correction=0)

    def codes(self, x: T, finer: int = 1) -> T:
        """Return the odd codes of weights, -steps .. steps, differentiable.

        Args:
            x: the weights.
            finer: divide the difference of two codes into so many.
        """
        squashed, steps = torch.tanh(x), finer * self.steps
        half = squashed / (2 * squashed.abs().amax().clamp(min=SMALLEST_SCALE)) + 0.5
        return (2 * straight_through(half * steps) - steps) / finer

    @property
    def scale(self) -> T:
        """Difference between neighbouring codes, shape [] or [C]."""
        return self.unit / self.steps

    def forward(self, x: T) -> T:
        """Round weights to the levels."""
        # Whole numbers times the scale, as in the file: ties of powers of two stay ties.
        codes = self.codes(x, self.steps_per_code)
        return codes * broadcast_scale(self.scale, x, self.params)

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the odd codes of ``weight``, as floats, and the code book of these codes."""
        odd = np.arange(-self.steps, self.steps + 1, 2, dtype=np.int32)
        scale = plan_scale(self.scale, self.params)
        grid = Codebook(self.params.spec, scale, self.params.zero_point, odd)
        return self.codes(weight).detach(), grid

    def with_zero_level(self) -> WeightModule:
        """Return straight-through rounding on the calibrated grid: the odd levels lack 0.

        The two levels of 1 bit get the level 0 as a third: a grid of 1 bit has no other levels.
        """
        if self.params.spec.bits == 1:
            return ZeroLevel(self)
        return STEWeight(self.params, follows_range=False)
