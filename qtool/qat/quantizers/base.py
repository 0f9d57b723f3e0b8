"""Protocols of the quantizers that training uses, and base classes of their modules.

An entry of the table holds a method's options and makes modules; a module fake-quantizes one
tensor, or all tensors that share one grid, while the network trains.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import nn

from qtool.errors import RecipeError
from qtool.quant.primitives import Codebook, QuantParams

T = torch.Tensor


class GridModule(Protocol):
    """A torch module that rounds tensors to one grid; also a ``torch.nn.Module``.

    Attributes:
        params: grid that training starts from.
        scale: current scale: shape [] or [C] of weights, [1] of activations.
        decays: the module's parameters take the weight decay of the weights.
        at_weight_rate: names of its parameters that learn at the rate of the weights.
        scale_tensor: name of the tensor that holds the scale; None: several tensors do.
        steps_of_scale: how many scales that tensor holds: a range is so many steps.
        refines: training can round to a finer grid over the same range.
        finer: steps of that grid in one of the requested grid; a power of two.
    """

    params: QuantParams
    decays: bool
    at_weight_rate: frozenset[str]
    scale_tensor: str | None
    steps_of_scale: float
    refines: bool
    finer: int

    @property
    def scale(self) -> T:
        """Current scale."""

    @property
    def scale_owner(self) -> "GridBase":
        """The module that holds ``scale_tensor``."""

    def __call__(self, x: T) -> T:
        """Return ``x`` rounded to the grid, differentiable."""

    def eval(self) -> Any:
        """Switch to evaluation."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that training learns, with their names."""

    def project(self) -> None:
        """Clamp the parameters to their domain; called after every optimizer step."""

    def advance(self, share: float, depth: float) -> None:
        """Set how far training is; called before every step.

        Args:
            share: of training that is done, 0 to 1.
            depth: position among the layers, or among the grids of activations, 0 to 1.
        """


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

    def clip_weight(self, weight: T) -> None:
        """Clamp the weights to the method's domain in place; called after an optimizer step."""

    def penalty(self, weight: T) -> T | None:
        """Return what the method adds to the loss, rank 0; None: nothing."""

    def with_zero_level(self) -> "WeightModule":
        """Return a module whose grid holds 0, for weights of which some must stay 0."""


class Widths(NamedTuple):
    """The bits of the layers that a recipe trains; floats are left out.

    Attributes:
        weights: of all layers.
        activations: of all layers.
    """

    weights: frozenset[int]
    activations: frozenset[int]

    @property
    def narrow(self) -> bool:
        """True where something has less than 8 bits."""
        return any(bits < 8 for bits in self.weights | self.activations)


class QatQuantizer(ABC):
    """An entry of QAT_QUANTIZERS: a frozen dataclass whose fields are the method's options."""

    starts_from_codes: ClassVar[bool] = True
    """Weights start at the plan's codes and scales, so that repairing the plan first helps; False
    for methods that compute a grid of their own from the float weights."""
    scheme: ClassVar[str] = "uniform"
    """Name in SCHEMES of what gives the weights of less than 8 bits their first grid."""
    trains_binary: ClassVar[bool] = False
    """Weights of 1 bit can be trained."""
    calibrator: ClassVar[Mapping[str, Any] | None] = None
    """Calibrator, with options, of recipes that name none; None: the recipe's default."""
    restricts_scales: ClassVar[bool] = True
    """Scales can have the form of bits.scale."""
    reads_scheme: ClassVar[bool] = True
    """Training starts from the grid of the scheme, so that the scheme's options matter."""

    @classmethod
    def training_defaults(cls, widths: Widths) -> Mapping[str, Any]:
        """Return keys of ``qat`` that the paper trains with, for recipes that do not have them.

        Args:
            widths: of the recipe's layers.
        """
        return {}

    @classmethod
    def unread(cls, options: Mapping[str, Any], widths: Widths) -> Mapping[str, str]:
        """Return the options that have no effect, with what would give them one.

        Args:
            options: that a recipe names.
            widths: of its layers.
        """
        return {}

    @abstractmethod
    def weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights.

        Args:
            params: calibrated grid, symmetric, one scale per tensor or per channel [C].
            weight: the weights that training starts from.
        """

    @abstractmethod
    def activation(self, params: QuantParams) -> ActivationModule:
        """Return the module of one activation grid.

        Args:
            params: calibrated grid, per tensor.
        """


class GridBase(nn.Module):
    """Defaults of a :class:`GridModule` without parameters."""

    decays = False
    at_weight_rate: frozenset[str] = frozenset()
    scale_tensor: str | None = "scale"
    steps_of_scale = 1.0
    refines = False
    finer = 1

    def __init__(self, params: QuantParams) -> None:
        """Make the module.

        Args:
            params: grid that training starts from.
        """
        super().__init__()
        self.params = params

    @property
    def steps_per_code(self) -> int:
        """Steps of the grid that is rounded to, in one of the requested grid; 1 in evaluation."""
        return self.finer if self.training else 1

    @property
    def scale_owner(self) -> "GridBase":
        """The module that holds ``scale_tensor``."""
        return self

    def project(self) -> None:
        """Do nothing: the module has no parameters."""

    def advance(self, share: float, depth: float) -> None:
        """Do nothing: all of training is alike."""


class WeightBase(GridBase):
    """Defaults of a :class:`WeightModule` that rounds to nearest on a grid with a level at 0."""

    rounds_to_nearest = True
    follows_range = False
    scale_gradient_factor = 1.0

    def update_range(self, weight: T) -> None:
        """Do nothing: the scale does not follow the weights."""

    def clip_weight(self, weight: T) -> None:
        """Do nothing: weights may have any value."""

    def penalty(self, weight: T) -> T | None:
        """Return None: the loss stays as it is."""
        return None

    def with_zero_level(self) -> WeightModule:
        """Return this module: its grid holds 0."""
        return self  # type: ignore[return-value]  # subclasses add scale and freeze


class CodebookBase(WeightBase):
    """Defaults of a :class:`WeightModule` whose grid is a code book."""

    rounds_to_nearest = False

    def codebook(self, scale: T, levels: np.ndarray) -> Codebook:
        """Return the code book with the requested bits of the grid that training starts from.

        Args:
            scale: shape [] or [C].
            levels: whole numbers in any order.
        """
        values = scale.detach().cpu().numpy().astype(np.float32).reshape(self.params.scale.shape)
        zero = np.zeros(values.shape, np.int32)
        return Codebook(self.params.spec, values, zero, np.unique(levels).astype(np.int32))


class ZeroLevel(CodebookBase):
    """A module of weights with one more level, 0, for the weights that are exactly 0."""

    def __init__(self, module: WeightModule) -> None:
        """Make the module.

        Args:
            module: of the weights that are not 0.
        """
        super().__init__(module.params)
        self.module = module
        self.decays, self.follows_range = module.decays, module.follows_range
        self.at_weight_rate = frozenset(f"module.{name}" for name in module.at_weight_rate)

    @property
    def scale(self) -> T:
        """Scale of the inner module."""
        return self.module.scale

    @property
    def scale_owner(self) -> GridBase:
        """The inner module, which holds ``scale_tensor``."""
        return self.module.scale_owner

    def forward(self, x: T) -> T:
        """Round weights that are not 0."""
        return self.module(x) * (x != 0)

    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the codes of ``weight``, as floats, and the code book with the level 0."""
        codes, params = self.module.freeze(weight)
        book = cast(Codebook, params)
        levels = np.unique(np.append(book.levels, 0)).astype(np.int32)
        return codes * (weight != 0), replace(book, levels=levels)

    def update_range(self, weight: T) -> None:
        """Compute the scale of the inner module."""
        self.module.update_range(weight)

    def clip_weight(self, weight: T) -> None:
        """Clamp the weights to the domain of the inner module."""
        self.module.clip_weight(weight)

    def advance(self, share: float, depth: float) -> None:
        """Pass on how far training is."""
        self.module.advance(share, depth)

    def penalty(self, weight: T) -> T | None:
        """Return the penalty of the inner module."""
        return self.module.penalty(weight)

    def project(self) -> None:
        """Clamp the parameters of the inner module."""
        self.module.project()


def learned_parameters(grid: GridModule, at_weight_rate: bool) -> list[nn.Parameter]:
    """Return the parameters of a module that learn at the rate of weights, or at that of scales.

    Args:
        grid: the module.
        at_weight_rate: which of the two.
    """
    named = grid.named_parameters()
    return [p for name, p in named if (name in grid.at_weight_rate) == at_weight_rate]


def lower_bits(network: nn.Module, extra_bits: int, share: float) -> None:
    """Set how many bits more than requested the grids of less than 8 bits are trained with.

    Args:
        network: with the modules of its grids; those that cannot be finer stay as they are.
        extra_bits: when training starts; one fewer after each equal part of its first half.
        share: of training that is done, 0 to 1.
    """
    left = extra_bits - min(int(2 * share * extra_bits), extra_bits)
    for module in network.modules():
        if isinstance(module, GridBase) and module.refines and module.params.spec.bits < 8:
            module.finer = 2**left


def module_with_zero(plain: WeightModule, weight: T, name: str) -> WeightModule:
    """Return a module whose grid holds 0, in no more levels than its bits have.

    Args:
        plain: module of all weights.
        weight: its weights.
        name: of the weights, for messages.

    Raises:
        RecipeError: all levels of a learned code book are taken, and none stays 0.
    """
    module = plain.with_zero_level()
    if not isinstance(module, ZeroLevel):
        return module
    room = 2**module.params.spec.bits
    if len(cast(Codebook, plain.freeze(weight)[1]).levels) >= room:
        raise RecipeError(
            f'the weights "{name}" have {room} learned levels, of which none stays 0 for pruned '
            "weights; train them with lsq or kmeans, or prune without training",
            ("qat", "quantizer"),
        )
    return module
