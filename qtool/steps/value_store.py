"""Store the values alive at a cut of the graph, for several networks side by side."""

from pathlib import Path

import numpy as np
import torch

Values = dict[str, torch.Tensor]

# Bytes of values that stay in memory; what is beyond goes to a temporary file.
MEMORY_LIMIT = 3 << 30


class ValueStore:
    """Values by chunk of samples and network; on disk where they do not fit in memory."""

    def __init__(self, folder: Path) -> None:
        """Open an empty store.

        Args:
            folder: for values that do not fit in memory; its owner removes it.
        """
        self._folder = folder
        self._values: dict[int, tuple[Values, ...]] = {}
        self._bytes: dict[int, int] = {}
        self._files = 0

    def put(self, chunk: int, *networks: Values) -> None:
        """Replace the values of a chunk."""
        self._bytes.pop(chunk, None)
        size = sum(t.nbytes for values in networks for t in values.values())
        if sum(self._bytes.values()) + size > MEMORY_LIMIT:
            networks = tuple(
                {name: self._mapped(tensor) for name, tensor in values.items()}
                for values in networks
            )
            size = 0
        self._values[chunk] = networks
        self._bytes[chunk] = size

    def get(self, chunk: int) -> tuple[Values, ...]:
        """Return the values of each network, in the order of :meth:`put`."""
        return self._values[chunk]

    def _mapped(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the same tensor, mapped from a file that is removed once nothing reads it."""
        if not tensor.numel():
            return tensor
        path = self._folder / f"{self._files}.bin"
        self._files += 1
        array = tensor.cpu().contiguous().numpy()
        array.tofile(path)
        mapped = np.memmap(path, array.dtype, "c", shape=array.shape)
        path.unlink()  # the mapping keeps the bytes; they go with its last reader
        return torch.from_numpy(mapped)
