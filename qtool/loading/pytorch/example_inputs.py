"""Random example inputs for a torch module, and names for its outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qtool.errors import UnsupportedError

# Sizes of dynamic dimensions for the export, and other sizes for the comparison with torch: a graph
# that is correct only for the sizes it was traced with fails the comparison. 64 and 96 are
# multiples of 32, the total stride of common backbones.
BATCH, OTHER_BATCH = 2, 3
SPATIAL, OTHER_SPATIAL = 64, 96
LENGTH, OTHER_LENGTH = 16, 12


@dataclass(frozen=True)
class TensorInput:
    """One input of a torch model.

    Attributes:
        name: of the input in the graph; if ``forward`` has a parameter of this name, of that too.
        shape: sizes, or names of dynamic dimensions; the batch comes first.
        dtype: element type as an attribute of ``torch``, such as "int64".
        constant: the number, or nested tuples of numbers, that it always is; None: any values.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    constant: Any = None


def sizes(inputs: Sequence[TensorInput], other: bool = False) -> dict[str, int]:
    """Choose a size for every dynamic dimension.

    Args:
        inputs: of the module.
        other: choose the second set of sizes, for the comparison.

    Returns:
        Name of the dimension -> size.
    """
    dim_sizes: dict[str, int] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                continue
            if axis == 0:
                size = OTHER_BATCH if other else BATCH
            elif len(spec.shape) > 3:  # images and videos
                size = OTHER_SPATIAL if other else SPATIAL
            else:
                size = OTHER_LENGTH if other else LENGTH
            dim_sizes.setdefault(dim, size)
    return dim_sizes


def random_tensors(
    inputs: Sequence[TensorInput], seed: int, other: bool = False
) -> dict[str, torch.Tensor]:
    """Draw random values for all inputs, the same for the same seed.

    Args:
        inputs: of the module.
        seed: of the first input; the others use the numbers after it.
        other: use the second set of sizes for dynamic dimensions.

    Returns:
        Name of the input -> tensor.
    """
    dim_sizes = sizes(inputs, other)
    tensors = {}
    for k, spec in enumerate(inputs):
        shape = [d if isinstance(d, int) else dim_sizes[d] for d in spec.shape]
        dtype = getattr(torch, spec.dtype)
        if spec.constant is not None:
            tensors[spec.name] = torch.tensor(spec.constant, dtype=dtype).expand(shape).clone()
        else:
            generator = torch.Generator().manual_seed(seed + k)
            tensors[spec.name] = random_tensor(shape, dtype, generator)
    return tensors


def random_tensor(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Draw standard normal floats, or integers 0 and 1.

    0 and 1 are valid as tokens, masks and indices. The first entry of every row is 1, so that no
    mask is empty; a vector of integers is all 1, since it may hold lengths.
    """
    if dtype.is_floating_point:
        return torch.randn(list(shape), generator=generator).to(dtype)
    values = torch.randint(0, 2, list(shape), generator=generator)
    if len(shape) > 1:
        values[..., 0] = 1
    else:
        values = torch.ones_like(values)
    return values.to(dtype)


def named_outputs(result: Any) -> dict[str, torch.Tensor]:
    """Collect the tensors in the result of a module.

    Args:
        result: a tensor, or tensors in nested tuples, lists and mappings.

    Returns:
        Name -> tensor: ``output`` for one tensor, ``output_0``, ``output_1`` ... for a sequence,
        the keys of a mapping; levels are joined by "_".

    Raises:
        UnsupportedError: there is no tensor.
    """
    tensors = dict(_tensors(result, ""))
    if not tensors:
        raise UnsupportedError(
            f"the module returns {type(result).__name__}, expected a tensor, or tensors in a "
            "tuple or dict; wrap it in a module that does"
        )
    return tensors


def _tensors(result: Any, name: str) -> list[tuple[str, torch.Tensor]]:
    """List the named tensors of a nested result; ``name`` is the path to it."""
    if isinstance(result, torch.Tensor):
        return [(name or "output", result)]
    if isinstance(result, Mapping):
        pairs = [(str(key), value) for key, value in result.items()]
        prefix = f"{name}_" if name else ""
    elif isinstance(result, list | tuple):
        pairs = [(str(key), value) for key, value in enumerate(result)]
        prefix = f"{name or 'output'}_"
    else:
        return []
    return [pair for key, value in pairs for pair in _tensors(value, prefix + key)]
