"""The memory of the machine, and reuse of large blocks of it."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Files in which Linux keeps the limit of a container, of both versions of its control groups.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# Options of glibc's malloc.h. A block above the threshold is mapped anew each time, and the system
# clears its pages; that takes longer than the computation of a step on them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MALLOC_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


def usable_memory() -> int:
    """Return the bytes that the machine, the container and the limits of this process allow."""
    import psutil

    limits = [psutil.virtual_memory().total + psutil.swap_memory().total]
    for path in _GROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(Path(path).read_text()))
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [limit] if limit != resource.RLIM_INFINITY else []
    return min(limits)


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
