"""Tensors made once and kept while they fit."""

from collections.abc import Callable

import torch

# Bytes that one engine keeps; what comes after is made anew each time it is asked for.
KEPT_BYTES = 1 << 30


class Kept:
    """Tensors by name: ``kept(name, make)`` makes one, or returns the one that was made."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = 0

    def __call__(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor of that name."""
        found = self._tensors.get(name)
        if found is None:
            found = make()
            if self._bytes + found.nbytes <= KEPT_BYTES:
                self._tensors[name] = found
                self._bytes += found.nbytes
        return found
