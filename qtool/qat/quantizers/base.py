"""Protocols of the quantizers that training uses, and base classes of their modules.

An entry of the table holds a method's options and makes modules; a module fake-quantizes one
tensor, or all tensors that share one grid, while the network trains.
"""

from collections.abc import Iterator
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from qtool.quant.primitives import QuantParams

T = torch.Tensor


class GridModule(Protocol):
    """A torch module that rounds tensors to one grid; also a ``torch.nn.Module``.

    Attributes:
        params: grid that training starts from.
        scale: current scale: shape [] or [C] of weights, [1] of activations.
        decays: the module's parameters take the weight decay of the weights.
    """

    params: QuantParams
    decays: bool

    @property
    def scale(self) -> T:
        """Current scale."""

    def __call__(self, x: T) -> T:
        """Return ``x`` rounded to the grid, differentiable."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that training learns."""

    def project(self) -> None:
        """Clamp the parameters to their domain; called after every optimizer step."""


@runtime_checkable
class ActivationModule(GridModule, Protocol):
    """The module of one activation grid, which is per tensor."""

    def freeze(self) -> QuantParams:
        """Return the learned grid."""


@runtime_checkable
class WeightModule(GridModule, Protocol):
    """The module of one layer's weights.

    Attributes:
        rounds_to_nearest: codes are clip(round(weight / scale)), so oscillations can be counted.
        follows_range: the scale is computed from the weights at every training step.
        scale_gradient_factor: factor on the gradient of a learned scale.
    """

    rounds_to_nearest: bool
    follows_range: bool
    scale_gradient_factor: float

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the codes that calling rounds ``weight`` to, as floats, and the learned grid."""

    def update_range(self, weight: T) -> None:
        """Compute the scale from ``weight``, where the scale follows the weights."""

    def with_zero_level(self) -> "WeightModule":
        """Return a module whose grid holds 0, for weights of which some must stay 0."""


class QatQuantizer(Protocol):
    """An entry of QAT_QUANTIZERS: a frozen dataclass whose fields are the method's options."""

    starts_from_codes: ClassVar[bool]
    """Weights start at the plan's codes and scales, so that repairing the plan first helps; False
    for methods that compute a grid of their own from the float weights."""

    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights.

        Args:
            params: calibrated grid, symmetric, one scale per tensor or per channel [C].
            weight: the weights that training starts from.
        """

    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid.

        Args:
            params: calibrated grid, per tensor.
        """


class GridBase(nn.Module):
    """Defaults of a :class:`GridModule` without parameters."""

    decays = False

    def __init__(self, params: QuantParams) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
        """
        super().__init__()
        self.params = params

    def project(self) -> None:
        """Do nothing: the module has no parameters."""


class WeightBase(GridBase):
    """Defaults of a :class:`WeightModule` that rounds to nearest on a grid with a level at 0."""

    rounds_to_nearest = True
    follows_range = False
    scale_gradient_factor = 1.0

    def update_range(self, weight: T) -> None:
        """Do nothing: the scale does not follow the weights."""

    def with_zero_level(self) -> WeightModule:
        """Return this module: its grid holds 0."""
        return self  # type: ignore[return-value]  # subclasses add scale and freeze
