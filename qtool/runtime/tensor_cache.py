"""Cache of tensors with a limit in bytes."""

import threading
from collections.abc import Callable

import torch

from qtool.runtime.memory import Quota

# Bytes of one cache. Tensors beyond it are made anew at every call, so that the dequantized weights
# of a large model do not fill the memory.
CACHE_BYTES = 1 << 30
# Share of the run's memory limit up to which caches may fill the process: making weights anew for
# every batch costs more than reading values from a file, so caches may go beyond stored values.
SHARE = 0.75


_STORING = threading.Lock()


class TensorCache:
    """Tensors by name: ``cache(name, make)`` makes a tensor at its first call."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._quota = Quota(CACHE_BYTES, SHARE)

    def __call__(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the tensor of that name; make it if it is not in the cache.

        Args:
            name: key of the tensor.
            make: called without arguments where the cache has no such tensor.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            made = make()
            with _STORING:  # another thread may have made it in the meantime
                tensor = self._tensors.get(name, made)
                if name not in self._tensors and self._quota.reserve(made.nbytes):
                    self._tensors[name] = made
        return tensor
