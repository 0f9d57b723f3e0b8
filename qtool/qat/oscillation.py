"""Weights whose codes jump to and fro: counted, held back, or fixed for good.

Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training",
arXiv:2203.11086. Departures: codes are counted after each optimizer step, not in the next forward
pass; a frozen weight moves with its scale, and its gradient becomes that of the scale.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qtool.errors import RecipeError
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers.fixed import FixedWeight
from qtool.qat.quantizers.functions import beside, nearest_codes
from qtool.qat.quantizers.grids import LearnedScaleWeight
from qtool.qat.settings import Oscillation

T = torch.Tensor

# Weights of more bits have codes too close to each other for their jumps to matter.
MOST_BITS = 4
# A weight oscillates while its frequency is above this: once in 200 steps.
OSCILLATES = 0.005
# The threshold of freezing starts here, or at its last value where that is higher.
FIRST_THRESHOLD = 0.1


@dataclass(frozen=True)
class _Layer:
    """One weight, its grid, and its place in the vectors over all weights."""

    weight: nn.Parameter
    grid: LearnedScaleWeight | FixedWeight
    part: slice

    def step(self) -> T:
        """The scale, without gradient, in a shape that broadcasts against the weight."""
        step: T = beside(self.grid.scale.detach(), self.weight, self.grid.params)
        return step

    def of(self, vector: T) -> T:
        """This layer's part of a vector, in the weight's shape."""
        return vector[self.part].view(self.weight.shape)


class Oscillations(nn.Module):
    """The codes of all weights of at most 4 bits, step by step.

    Attributes:
        last: codes after the last step, int8 [weights].
        direction: sign of the last change, int8; 0 before the first.
        frequency: moving average of "changed against the direction of its last change", float32.
        mean: moving average of the code; of a frozen weight its code.
        frozen: fixed for good, bool.
    """

    last: T
    direction: T
    frequency: T
    mean: T
    frozen: T

    def __init__(self, network: QatNetwork, settings: Oscillation) -> None:
        """Begin with the codes as they are.

        Args:
            network: its weights are read, and written where they are frozen.
            settings: what to do about oscillations.

        Raises:
            RecipeError: no weight has 4 bits or fewer, or one is not rounded on a uniform grid.
        """
        super().__init__()
        self.settings = settings
        self._layers = _layers(network)
        self.register_buffer("last", self._codes())
        self.register_buffer("direction", torch.zeros_like(self.last))
        self.register_buffer("frequency", torch.zeros_like(self.last, dtype=torch.float32))
        self.register_buffer("mean", self.last.float())
        self.register_buffer("frozen", torch.zeros_like(self.last, dtype=torch.bool))

    @torch.no_grad()
    def _codes(self) -> T:
        found = []
        for layer in self._layers:
            codes = nearest_codes(layer.weight, layer.grid.scale, layer.grid.params)
            found.append(codes.to(torch.int8).reshape(-1))
        return torch.cat(found)

    def dampening(self, share: float) -> T | None:
        """What is added to the loss; None where nothing is asked for.

        Args:
            share: of training that is done, 0 to 1; the factor rises along half a cosine.
        """
        if not self.settings.dampen:
            return None
        factor = self.settings.dampen * (1 - math.cos(math.pi * share)) / 2
        return factor * torch.stack([_distance(layer) for layer in self._layers]).sum()

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Before the optimizer's step: gradients of frozen weights become their scales'.

        With w = code * s the derivative by s is the code. LSQ gives it at the limits of the grid
        and, for a w of its own, 0 on the grid between them, where the weight has the gradient.
        """
        if self.settings.freeze is None:
            return
        for layer in self._layers:
            gradient = layer.weight.grad
            if gradient is None:
                continue
            frozen, scale = layer.of(self.frozen), layer.grid.scale
            if isinstance(layer.grid, LearnedScaleWeight) and scale.grad is not None:
                moved = torch.where(frozen, gradient * layer.of(self.mean), 0.0)
                per_scale = moved.sum_to_size(layer.step().shape).reshape(scale.shape)
                scale.grad += layer.grid.rule.factor * per_scale
            gradient.masked_fill_(frozen, 0.0)

    @torch.no_grad()
    def step(self, share: float) -> None:
        """After the optimizer's step: look at the codes, freeze what oscillates too often.

        Args:
            share: of training that is done, 0 to 1; the threshold falls along half a cosine.
        """
        self._follow()
        codes = torch.where(self.frozen, self.last, self._codes())
        change = (codes - self.last).sign()
        turned = (change * self.direction) < 0
        self.direction.copy_(torch.where(change == 0, self.direction, change))
        self.frequency.lerp_(turned.float(), self.settings.momentum)
        self.mean.lerp_(codes.float(), self.settings.momentum)
        self.last.copy_(codes)
        if self.settings.freeze is not None:
            self._freeze(threshold(self.settings.freeze, share))
            self._write()

    def _freeze(self, limit: float) -> None:
        new = (self.frequency > limit) & ~self.frozen
        for layer in self._layers:
            if _follows(layer):  # a range that follows the weights hangs on the outermost of them
                new[layer.part] &= self.last[layer.part].abs() < layer.grid.params.spec.qmax
        self.mean.copy_(torch.where(new, self.mean.round(), self.mean))
        self.last.copy_(torch.where(new, self.mean.to(torch.int8), self.last))
        self.frozen |= new

    @torch.no_grad()
    def hold(self) -> None:
        """Bring frozen weights to their codes on the scales as they are now."""
        if self.settings.freeze is not None:
            self._follow()
            self._write()

    def _follow(self) -> None:
        """Scales that the next step would take from the weights, from those that are free."""
        if self.settings.freeze is None:
            return
        for layer in self._layers:
            if isinstance(layer.grid, FixedWeight) and _follows(layer):
                layer.grid.follow(layer.weight.masked_fill(layer.of(self.frozen), 0.0))

    def _write(self) -> None:
        for layer in self._layers:
            codes = layer.of(self.mean) * layer.step()
            layer.weight.copy_(torch.where(layer.of(self.frozen), codes, layer.weight))

    def shares(self) -> tuple[float, float | None]:
        """Shares of the weights that oscillate and that are frozen; None: nothing is ever frozen.

        Frozen weights do not oscillate.
        """
        count = self.last.numel()
        restless = (self.frequency > OSCILLATES) & ~self.frozen
        frozen = None if self.settings.freeze is None else int(self.frozen.sum()) / count
        return int(restless.sum()) / count, frozen


def threshold(last: float, share: float) -> float:
    """Frequency above which a weight is frozen: half a cosine from the first value to ``last``."""
    first = max(FIRST_THRESHOLD, last)
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def _layers(network: QatNetwork) -> list[_Layer]:
    found, start = [], 0
    for key, weight in network.weights.items():
        grid: Any = network.weight_grids[key]
        if grid.params.spec.bits > MOST_BITS:
            continue
        if not isinstance(grid, LearnedScaleWeight | FixedWeight):
            raise RecipeError(
                "qat.oscillation: found a quantizer whose codes are not round(weight / scale), "
                "expected lsq, lsq_plus, ewgs or ste; use one of them, or leave oscillation out"
            )
        found.append(_Layer(weight, grid, slice(start, start + weight.numel())))
        start += weight.numel()
    if not found:
        raise RecipeError(
            f"qat.oscillation: found no weights of {MOST_BITS} bits or fewer, and others are not "
            "looked at; leave oscillation out, or set bits.weights"
        )
    return found


def _follows(layer: _Layer) -> bool:
    return isinstance(layer.grid, FixedWeight) and layer.grid.follows


def _distance(layer: _Layer) -> T:
    """Squared distance of the clipped weights to their rounded values, summed; rank 0."""
    spec, step = layer.grid.params.spec, layer.step()
    rounded = nearest_codes(layer.weight, layer.grid.scale, layer.grid.params) * step
    clipped = layer.weight.clamp(spec.qmin * step, spec.qmax * step)
    return (clipped - rounded).square().sum()
