"""Inputs to try a torch module on, and its outputs by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qtool.errors import UnsupportedError

# Sizes of dynamic dimensions while exporting, and others to check the result at: a graph that holds
# only for the sizes it was traced with fails there.
BATCH, OTHER_BATCH = 2, 3
SPATIAL, OTHER_SPATIAL = 64, 96
LENGTH, OTHER_LENGTH = 16, 12


@dataclass(frozen=True)
class TensorInput:
    """One input of a torch model.

    Attributes:
        name: the input's name in the graph; a parameter of ``forward`` where it has one so named.
        shape: sizes, or names of dynamic dimensions; the batch comes first.
        dtype: torch's name of the element type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


def sizes(inputs: Sequence[TensorInput], other: bool = False) -> dict[str, int]:
    """A size for every dynamic dimension; ``other`` gives different ones."""
    found: dict[str, int] = {}
    for given in inputs:
        for axis, dim in enumerate(given.shape):
            if isinstance(dim, int):
                continue
            if axis == 0:
                size = OTHER_BATCH if other else BATCH
            elif len(given.shape) > 3:
                size = OTHER_SPATIAL if other else SPATIAL
            else:
                size = OTHER_LENGTH if other else LENGTH
            found.setdefault(dim, size)
    return found


def random_tensors(
    inputs: Sequence[TensorInput], seed: int, other: bool = False
) -> dict[str, torch.Tensor]:
    """Random values in the declared shapes, the same for the same seed."""
    have = sizes(inputs, other)
    return {
        given.name: random_tensor(
            [d if isinstance(d, int) else have[d] for d in given.shape],
            getattr(torch, given.dtype),
            torch.Generator().manual_seed(seed + k),
        )
        for k, given in enumerate(inputs)
    }


def random_tensor(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Normal floats; integers 0 or 1, which are valid as tokens, masks and indices alike.

    The first entry of every row is 1: an empty mask has no mean, and a length is not 0.
    """
    if dtype.is_floating_point:
        return torch.randn(list(shape), generator=generator).to(dtype)
    values = torch.randint(0, 2, list(shape), generator=generator)
    if len(shape) > 1:
        values[..., 0] = 1
    else:
        values = torch.ones_like(values)
    return values.to(dtype)


def by_name(result: Any) -> dict[str, torch.Tensor]:
    """The tensors a module returned: ``output``, ``output_0`` ..., or the keys of a mapping.

    Raises:
        UnsupportedError: there is none.
    """
    found = dict(_tensors(result, ""))
    if not found:
        raise UnsupportedError(
            f"the module returns {type(result).__name__}, expected a tensor, or tensors in a "
            "tuple or dict; wrap it in a module that does"
        )
    return found


def _tensors(result: Any, name: str) -> list[tuple[str, torch.Tensor]]:
    if isinstance(result, torch.Tensor):
        return [(name or "output", result)]
    if isinstance(result, Mapping):
        pairs = [(str(key), value) for key, value in result.items()]
        start = f"{name}_" if name else ""
    elif isinstance(result, list | tuple):
        pairs = [(str(key), value) for key, value in enumerate(result)]
        start = f"{name or 'output'}_"
    else:
        return []
    return [found for key, value in pairs for found in _tensors(value, start + key)]
