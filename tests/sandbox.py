"""Run a command that the kernel kills where it, or a child of it, opens an internet socket.

python tests/sandbox.py COMMAND ...

Native libraries are held to it as well as Python. Linux on x86-64 only.
"""

import ctypes
import os
import platform
import struct
import sys

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"

# A seccomp filter in BPF: of x86-64's system call 41, socket(), only families other than AF_INET
# (2) and AF_INET6 (10) are allowed. Offsets are those of struct seccomp_data.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_FILTER = (
    (_LOAD, 0, 0, 4),
    (_JUMP_IF_EQUAL, 0, 6, 0xC000003E),
    (_LOAD, 0, 0, 0),
    (_JUMP_IF_EQUAL, 0, 4, 41),
    (_LOAD, 0, 0, 16),
    (_JUMP_IF_EQUAL, 1, 0, 2),
    (_JUMP_IF_EQUAL, 0, 1, 10),
    (_RETURN, 0, 0, _KILL),
    (_RETURN, 0, 0, _ALLOW),
)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_network() -> None:
    """Install the filter in this process and all that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(_FILTER), b"".join(struct.pack("HBBI", *line) for line in _FILTER))
    no_new_privileges, seccomp, filtered = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(
        seccomp, filtered, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


if __name__ == "__main__":
    forbid_network()
    os.execvp(sys.argv[1], sys.argv[1:])
