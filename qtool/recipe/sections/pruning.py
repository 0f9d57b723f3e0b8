"""The recipe's ``pruning`` section: which weights or channels are removed, and when."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from qtool.recipe.choice import Choice, NamedChoice
from qtool.recipe.error_messages import describe
from qtool.recipe.sections.budget import Percent
from qtool.recipe.sections.network import Part

_PATTERN = re.compile(r"^(\d+):(\d+)$")
_EPOCHS = re.compile(r"^(\d+)\s*epochs?$")
AMOUNTS = ("sparsity", "n_m", "channels")
"""Keys of which a section has exactly one."""


def _n_of_m(value: Any) -> Any:
    match = _PATTERN.match(value) if isinstance(value, str) else None
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(
            f'found {describe(value)}, expected "N:M" in quotes, of which N are fewer than M, such '
            'as "2:4"'
        )
    return value


def _epochs(value: Any) -> Any:
    match = _EPOCHS.match(value) if isinstance(value, str) else None
    if match is None or int(match[1]) < 1:
        raise ValueError(f"found {describe(value)}, expected a number of epochs such as 5 epochs")
    return value


class Schedule(Part):
    """The growth of the sparsity in training."""

    gradual: Annotated[
        str,
        BeforeValidator(_epochs),
        WithJsonSchema({"type": "string", "pattern": _EPOCHS.pattern}),
    ]
    """The sparsity grows from 0 along a cubic curve over so many epochs: 5 epochs."""

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return int(self.gradual.split("e")[0])


class Pruning(Part):
    """Weights that become 0, or channels that are removed; exactly one of the first three."""

    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the weights of every layer that becomes 0."""
    n_m: (
        Annotated[
            str,
            BeforeValidator(_n_of_m),
            WithJsonSchema({"type": "string", "pattern": _PATTERN.pattern}),
        ]
        | None
    ) = None
    """"2:4": two weights stay of each four consecutive ones along the input channels."""
    channels: Percent | None = None
    """Share of the multiply-accumulates to remove by removing whole channels: 50%."""
    method: NamedChoice = Choice(name="magnitude")
    """The choice of the weights: a name of `qtool list pruning`, or one with options."""
    layers: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Pattern (as in bits.layers) to another sparsity; 0 leaves a layer as it is. The last match
    wins."""
    schedule: Schedule | None = None
    """When weights are pruned: absent, all at once before repair and training."""

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """N and M; None where no pattern is requested."""
        match = _PATTERN.match(self.n_m or "")
        return None if match is None else (int(match[1]), int(match[2]))

    @property
    def share(self) -> float | None:
        """The share of multiply-accumulates to remove, 0 to 1; None where no channel is."""
        return None if self.channels is None else float(self.channels.rstrip("% ")) / 100
