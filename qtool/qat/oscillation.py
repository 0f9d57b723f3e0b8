"""Oscillating weights, whose codes change back and forth: counted, dampened or frozen.

Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training",
arXiv:2203.11086. Departures: codes are counted after each optimizer step, not in the next forward
pass; a frozen weight follows its scale, and its gradient is added to that of the scale.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from qtool.errors import RecipeError
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers.base import WeightModule
from qtool.qat.quantizers.scales import broadcast_scale, nearest_codes
from qtool.qat.settings import Oscillation

T = torch.Tensor

# Codes of more bits are so close to each other that a change of one hardly matters.
MOST_BITS = 4
# A weight oscillates while its frequency is above this: once in 200 steps.
OSCILLATES = 0.005
# The threshold of freezing starts here, or at its last value where that is higher.
FIRST_THRESHOLD = 0.1
# Change of the rate of weights in a step, in peak rates, where no code changes and all r_0 should.
ADAPTATION = 0.01


@dataclass(frozen=True)
class _Layer:
    """One weight, its quantizer, and its part of the vectors over all weights."""

    weight: nn.Parameter
    grid: WeightModule
    part: slice

    def step(self) -> T:
        """Return the scale, without gradient, in a shape that broadcasts against the weight."""
        step: T = broadcast_scale(self.grid.scale.detach(), self.weight, self.grid.params)
        return step

    def of(self, vector: T) -> T:
        """Return this layer's part of a vector, in the weight's shape."""
        return vector[self.part].view(self.weight.shape)


class Oscillations(nn.Module):
    """Codes of all weights of at most 4 bits, and how often they change their direction.

    Attributes:
        last: codes after the last step, int8 [weights].
        direction: sign of the last change, int8; 0 before the first.
        frequency: moving average of "changed against the direction of its last change", float32.
        mean: moving average of the code; of a frozen weight its code.
        frozen: weights whose code no longer changes, bool.
    """

    last: T
    direction: T
    frequency: T
    mean: T
    frozen: T

    def __init__(self, network: QatNetwork, settings: Oscillation) -> None:
        """Begin with the current codes.

        Args:
            network: its weights are read, and written where they are frozen.
            settings: dampening, freezing and momentum.

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
        self.pace = None
        if settings.transitions is not None:
            self.pace = TransitionRate(settings.transitions, settings.momentum)

    @torch.no_grad()
    def _codes(self) -> T:
        """Return the current codes, int8 [weights]."""
        parts = []
        for layer in self._layers:
            codes = nearest_codes(layer.weight, layer.grid.scale, layer.grid.params)
            parts.append(codes.to(torch.int8).reshape(-1))
        return torch.cat(parts)

    def dampening(self, share: float) -> T | None:
        """Compute the term that is added to the loss; None without dampening.

        factor * sum (round(w) - clip(w))^2, the factor rising from 0 along half a cosine.

        Args:
            share: of training that is done, 0 to 1.
        """
        if not self.settings.dampen:
            return None
        factor = self.settings.dampen * (1 - math.cos(math.pi * share)) / 2
        return factor * torch.stack([_distance(layer) for layer in self._layers]).sum()

    @torch.no_grad()
    def move_gradients(self) -> None:
        """Add the gradients of frozen weights to those of their scales, and set them to 0.

        Call it before the optimizer's step. A frozen weight is code * s, so its derivative by s is
        the code. LSQ's gradient has that at the limits of the grid; between them it is round(w/s) -
        w/s, which is 0 for a weight on the grid.
        """
        if self.settings.freeze is None:
            return
        for layer in self._layers:
            gradient = layer.weight.grad
            if gradient is None:
                continue
            frozen, scale = layer.of(self.frozen), layer.grid.scale
            if scale.grad is not None:
                by_scale = torch.where(frozen, gradient * layer.of(self.mean), 0.0)
                summed = by_scale.sum_to_size(layer.step().shape).reshape(scale.shape)
                scale.grad += layer.grid.scale_gradient_factor * summed
            gradient.masked_fill_(frozen, 0.0)

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Update the frequencies from the new codes, and freeze what oscillates too often.

        Call it after the optimizer's step. f <- m o + (1 - m) f, where o = 1 if the code changed
        against the direction of its last change, else 0, and m is the momentum.

        Args:
            share: of training that is done, 0 to 1; the threshold falls along half a cosine.
        """
        self._update_ranges()
        codes = torch.where(self.frozen, self.last, self._codes())
        change = (codes - self.last).sign()
        turned = (change * self.direction) < 0
        self.direction.copy_(torch.where(change == 0, self.direction, change))
        self.frequency.lerp_(turned.float(), self.settings.momentum)
        self.mean.lerp_(codes.float(), self.settings.momentum)
        self.last.copy_(codes)
        if self.pace is not None:
            self.pace.update((change != 0).float().mean())
        if self.settings.freeze is not None:
            self._freeze(threshold(self.settings.freeze, share))
            self._write()

    def _freeze(self, limit: float) -> None:
        """Freeze the weights whose frequency exceeds the limit at their mean code."""
        new = (self.frequency > limit) & ~self.frozen
        for layer in self._layers:
            if layer.grid.follows_range:  # the outermost weights determine the range
                new[layer.part] &= self.last[layer.part].abs() < layer.grid.params.spec.qmax
        self.mean.copy_(torch.where(new, self.mean.round(), self.mean))
        self.last.copy_(torch.where(new, self.mean.to(torch.int8), self.last))
        self.frozen |= new

    @torch.no_grad()
    def restore_frozen(self) -> None:
        """Set frozen weights to their codes on the current scales."""
        if self.settings.freeze is not None:
            self._update_ranges()
            self._write()

    def _update_ranges(self) -> None:
        """Compute scales that follow the weights from the weights that are not frozen."""
        if self.settings.freeze is None:
            return
        for layer in self._layers:
            if layer.grid.follows_range:
                layer.grid.update_range(layer.weight.masked_fill(layer.of(self.frozen), 0.0))

    def _write(self) -> None:
        """Set frozen weights to code * scale."""
        for layer in self._layers:
            codes = layer.of(self.mean) * layer.step()
            layer.weight.copy_(torch.where(layer.of(self.frozen), codes, layer.weight))

    def weight_rate(self, share: float) -> float | None:
        """Return the learning rate of weights, as a share of the peak; None: by the schedule.

        Args:
            share: of training that is done, 0 to 1.
        """
        if self.pace is None:
            return None
        return self.pace.adapted(share)

    def shares(self) -> tuple[float, float | None]:
        """Return the shares of weights that oscillate and that are frozen (None without freezing).

        Frozen weights do not oscillate.
        """
        count = self.last.numel()
        oscillating = (self.frequency > OSCILLATES) & ~self.frozen
        frozen = None if self.settings.freeze is None else int(self.frozen.sum()) / count
        return int(oscillating.sum()) / count, frozen


class TransitionRate(nn.Module):
    """The learning rate of weights that lets a given share of the codes change in a step.

    u <- max(0, u + 0.01 (r - k) / r_0), with the share r that shall change, r_0 at first, falling
    to 0 along half a cosine, and k the moving average of the share that does.

    Attributes:
        average: k, shape [].
        rate: u, as a share of the peak rate, shape [].
    Source: Lee et al. 2025, "Scheduling Weight Transitions for Quantization-Aware Training",
        arXiv:2404.19248. Departures: u counts in peak rates and r in r_0, so that one step size
        fits all networks; all weights take the rate, also those of more than 4 bits.
    """

    average: T
    rate: T

    def __init__(self, target: float, momentum: float) -> None:
        """Begin with the peak rate.

        Args:
            target: r_0, share of the codes.
            momentum: weight of the newest step in the average.
        """
        super().__init__()
        self.target, self.momentum = target, momentum
        self.register_buffer("average", torch.tensor(target))
        self.register_buffer("rate", torch.tensor(1.0))

    def update(self, changed: T) -> None:
        """Add the share of the codes that changed in a step to the average."""
        self.average.lerp_(changed.to(self.average), self.momentum)

    def adapted(self, share: float) -> float:
        """Adapt the rate and return it, as a share of the peak.

        Args:
            share: of training that is done, 0 to 1.
        """
        target = self.target * (1 + math.cos(math.pi * share)) / 2
        change = ADAPTATION * (target - self.average) / self.target
        self.rate.copy_((self.rate + change).clamp(min=0))
        return float(self.rate)


def threshold(last: float, share: float) -> float:
    """Compute the frequency above which a weight is frozen.

    t = last + (first - last) (1 + cos(pi share)) / 2.

    Args:
        last: threshold at the end of training.
        share: of training that is done, 0 to 1.
    """
    first = max(FIRST_THRESHOLD, last)
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def _layers(network: QatNetwork) -> list[_Layer]:
    """List the weights of at most 4 bits."""
    layers, start = [], 0
    for key, weight in network.weights.items():
        grid = cast(WeightModule, network.weight_grids[key])
        if grid.params.spec.bits > MOST_BITS:
            continue
        if not grid.rounds_to_nearest:
            raise RecipeError(
                "qat.oscillation: found a quantizer whose codes are not round(weight / scale), "
                "expected lsq, lsq_plus, ewgs or ste; use one of them, or leave oscillation out"
            )
        layers.append(_Layer(weight, grid, slice(start, start + weight.numel())))
        start += weight.numel()
    if not layers:
        raise RecipeError(
            f"qat.oscillation: found no weights of {MOST_BITS} bits or fewer, and others are not "
            "counted; leave oscillation out, or set bits.weights"
        )
    return layers


def _distance(layer: _Layer) -> T:
    """Compute sum (round(w) - clip(w))^2 of one layer, rank 0."""
    spec, step = layer.grid.params.spec, layer.step()
    rounded = nearest_codes(layer.weight, layer.grid.scale, layer.grid.params) * step
    clipped = layer.weight.clamp(spec.qmin * step, spec.qmax * step)
    return (clipped - rounded).square().sum()
