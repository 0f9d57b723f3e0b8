"""Store the values alive at a cut of the graph, for several networks side by side."""

import itertools
import math
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qtool.runtime.memory import Quota

Values = dict[str, torch.Tensor]

# Bytes of values of one store that stay in memory; what is beyond goes to a temporary file.
MEMORY_LIMIT = 512 << 20
# Share of the run's memory limit that stored values may fill.
SHARE = 0.5


def value_quota(stores: int = 1) -> Quota:
    """Return the bytes that some stores may hold in memory together."""
    return Quota(stores * MEMORY_LIMIT, SHARE)


@dataclass(frozen=True)
class _OnDisk:
    """A tensor in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """Return a copy in memory: pages of a mapped file would count as memory of the process."""
        return torch.from_numpy(np.fromfile(self.path, self.dtype, math.prod(self.shape))).reshape(
            self.shape
        )


class ValueStore:
    """Values by chunk of samples and network; on disk where they do not fit in memory.

    Threads may put and get different chunks at the same time.
    """

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        """Open an empty store.

        Args:
            folder: for values that do not fit in memory; its owner removes it.
            quota: shared with other stores; None: one of its own.
        """
        self._folder, self._quota = folder, quota or value_quota()
        self._values: dict[int, tuple[dict[str, torch.Tensor | _OnDisk], ...]] = {}
        self._bytes: dict[int, int] = {}
        self._numbers = itertools.count()  # of files
        self._lock = threading.Lock()

    def put(self, chunk: int, *networks: Values) -> None:
        """Replace the values of a chunk."""
        size = sum(t.nbytes for values in networks for t in values.values())
        with self._lock:
            self._quota.release(self._bytes.pop(chunk, 0))
            fits = self._quota.reserve(size)
        replaced = self._values.get(chunk, ())
        self._values[chunk] = tuple(
            {name: t if fits else self._written(t) for name, t in values.items()}
            for values in networks
        )
        self._bytes[chunk] = size if fits else 0
        _remove_files(replaced)

    def get(self, chunk: int, names: Collection[str] | None = None) -> tuple[Values, ...]:
        """Return the values of each network, in the order of :meth:`put`.

        Args:
            chunk: number of the chunk.
            names: of the values to return; None: all.
        """
        return tuple(
            {
                name: value.read() if isinstance(value, _OnDisk) else value
                for name, value in values.items()
                if names is None or name in names
            }
            for values in self._values[chunk]
        )

    def clear(self) -> None:
        """Drop all values and their files."""
        for networks in self._values.values():
            _remove_files(networks)
        self._values.clear()
        self._quota.release(sum(self._bytes.values()))
        self._bytes.clear()

    def _written(self, tensor: torch.Tensor) -> torch.Tensor | _OnDisk:
        """Return the tensor in a file; itself where it has no elements."""
        if not tensor.numel():
            return tensor
        path = self._folder / f"{next(self._numbers)}.bin"
        array = tensor.cpu().contiguous().numpy()
        array.tofile(path)
        return _OnDisk(path, array.dtype, array.shape)


def _remove_files(networks: Iterable[Mapping[str, torch.Tensor | _OnDisk]]) -> None:
    for values in networks:
        for value in values.values():
            if isinstance(value, _OnDisk):
                value.path.unlink()
