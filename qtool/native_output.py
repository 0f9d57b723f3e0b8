"""Discard what compiled libraries print to stdout."""

import contextlib
import ctypes
import os
from collections.abc import Iterator


@contextlib.contextmanager
def discard_native_stdout() -> Iterator[None]:
    """Discard what compiled code writes to file descriptor 1, since stdout is for results.

    torch prints graphs there while it exports them, HiGHS a line while it repairs a solution.
    """
    try:
        stdout = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    _flush()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        _flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(null)


def _flush() -> None:
    """Write out the buffers of the C library: a pipe is written to when they are full."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # of other systems
        ctypes.CDLL(None).fflush(None)
