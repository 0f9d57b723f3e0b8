"""Import torch and the simulation while the verifying child already runs."""

import importlib
import signal
import threading
from types import FrameType


def import_simulation() -> None:
    """Import torch and the simulation.

    An exception from a signal handler in the middle of the import would abort the process, so
    KeyboardInterrupt is raised after the import.
    """
    module = "qtool.verification.parity"
    if threading.current_thread() is not threading.main_thread():
        importlib.import_module(module)
        return
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, remember)
    try:
        importlib.import_module(module)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
