"""Keeping the memory of one training step for the next."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h. A block over the threshold is mapped anew each time, and the system clears
# its pages; that costs more than what a step computes with them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


@contextmanager
def reused_memory() -> Iterator[None]:
    """Freed blocks stay with the process; at the end they go back to the system.

    Does nothing where the C library has no ``mallopt`` (macOS, Windows, musl).
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for name, value in _DEFAULTS.items():
            mallopt(name, value)
        trim(0)
