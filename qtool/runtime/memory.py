"""The memory of the machine, the part of it that a run may use, and reuse of large blocks."""

import ctypes
import os
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

# Bytes that the run may use; None: as many as the machine has. The process has one memory, so there
# is one limit.
_limit: int | None = None


@contextmanager
def memory_limit(limit: int | None) -> Iterator[None]:
    """Let stores that are made in the block spill to disk, so that the process stays below a limit.

    Args:
        limit: in bytes; None: stores have their usual sizes.
    """
    global _limit
    before, _limit = _limit, limit
    try:
        yield
    finally:
        _limit = before


def private_bytes() -> int:
    """Return the resident bytes of this process that are not pages of files."""
    if sys.platform != "linux":
        import psutil

        return int(psutil.Process().memory_info().rss)
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


class Quota:
    """Bytes that some stores may hold in memory together."""

    def __init__(self, most: int, share: float) -> None:
        """Set the bytes: fewer where a limit leaves less.

        Args:
            most: without a limit.
            share: of the limit that the process may reach by holding them; the rest is left to
                computations.
        """
        room = most if _limit is None else int(share * _limit) - private_bytes()
        self._left = min(most, max(room, 0))

    def reserve(self, size: int) -> bool:
        """Reserve bytes; return False where there are not so many left."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def release(self, size: int) -> None:
        """Return reserved bytes to the quota."""
        self._left += size


def usable_memory() -> int:
    """Return the bytes that the limit, the machine, the container and the process's own allow."""
    import psutil

    limits = [psutil.virtual_memory().total + psutil.swap_memory().total]
    for path in _GROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(Path(path).read_text()))
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [limit] if limit != resource.RLIM_INFINITY else []
    return min([*limits, *([] if _limit is None else [_limit])])


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
