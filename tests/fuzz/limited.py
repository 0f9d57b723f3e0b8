"""Run a function in a forked process, under limits of time and memory."""

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL = 0.1  # seconds between two looks at the process
WAITING = 10


@dataclass(frozen=True)
class Limits:
    """Processor seconds, and MB of resident memory more than the parent has.

    A process that waits is killed after WAITING times the seconds.
    """

    seconds: float
    memory_mb: int


@dataclass(frozen=True)
class Ended:
    """The end of a process: its exit code (negative: a signal), what it printed and used."""

    code: int
    seconds: float
    peak_mb: int
    text: str
    broken_limit: str = ""


def run_limited(call: Callable[[], int], log: Path, limits: Limits) -> Ended:
    """Run ``call`` in a forked process group and return how it ended.

    Args:
        call: returns the exit code.
        log: file for stdout and stderr.
        limits: the group is killed where it breaks one.
    """
    start = time.monotonic()
    own = psutil.Process().memory_info().rss >> 20
    child = os.fork()
    if child == 0:
        become(_with_limits(call, limits), log)
    broken, peak, end = "", 0, os.pidfd_open(child)
    try:
        while not broken and not select.select([end], [], [], POLL)[0]:
            memory, seconds = _use(child)
            peak = max(peak, memory - own)
            if seconds > limits.seconds:
                broken = f"took {seconds:.0f} s of the processor"
            elif time.monotonic() - start > WAITING * limits.seconds:
                broken = f"ran over {WAITING * limits.seconds:g} s"
            elif peak > limits.memory_mb:
                broken = f"took {peak} MB"
    finally:
        os.close(end)
    if broken:
        os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    # The system has seen every moment, but each process alone; the looks have seen them together.
    peak = max(peak, (used.ru_maxrss >> 10) - own)
    if not broken and peak > limits.memory_mb:
        broken = f"took {peak} MB"
    with suppress(ProcessLookupError):  # what the process left running
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    text = log.read_text(errors="backslashreplace")
    return Ended(code, time.monotonic() - start, peak, text, broken)


def become(call: Callable[[], int], log: Path) -> None:
    """Turn a forked process into one of its own group that runs ``call``; never returns."""
    code = 99
    try:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # pytest has put files of its own in their place.
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        code = call()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _with_limits(call: Callable[[], int], limits: Limits) -> Callable[[], int]:
    """Return the call under a limit on addresses: what is never touched costs no memory."""

    def limited() -> int:
        room = psutil.Process().memory_info().vms + (max(limits.memory_mb, 4096) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return call()

    return limited


def _use(pid: int) -> tuple[int, float]:
    """Return MB resident in a process and its descendants, and the processor seconds they took."""
    memory, seconds = 0, 0.0
    for each in _descendants(pid):
        with suppress(psutil.Error):
            process = psutil.Process(each)
            times = process.cpu_times()
            memory += process.memory_info().rss
            seconds += times.user + times.system
    return memory >> 20, seconds


def _descendants(pid: int) -> Iterator[int]:
    """Yield a process and those below it; psutil would look at every process of the system."""
    yield pid
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in file.read_text().split():
                yield from _descendants(int(child))


def qtool_main(folder: Path, *words: str) -> int:
    """Run qtool in this process, in a folder; return its exit code, 98 where it returns."""
    from qtool.cli.main import main

    os.chdir(folder)
    sys.argv = ["qtool", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 98
