"""Reuse of large blocks of memory by computations that allocate the same sizes again and again."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Options of glibc's malloc.h. A block above the threshold is mapped anew each time, and the system
# clears its pages; that takes longer than the computation of a step on them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MALLOC_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed blocks in the process for the next step; return them to the system at the end.

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
        for name, value in _MALLOC_DEFAULTS.items():
            mallopt(name, value)
        trim(0)
