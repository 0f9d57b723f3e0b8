"""Quantize neural networks and verify the file that was written.

``qtool.run_ptq``, ``qtool.run_qat`` and ``qtool.verify`` are the commands in Python and return the
report; ``qtool.load``, ``qtool.quantize``, ``qtool.simulate`` and ``qtool.emit`` are their stages.
All are imported when first used: ``import qtool`` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from qtool.version import __version__

# From 1.31 on official builds of ONNX Runtime send usage data to their maker and write a device id
# to the home folder, unless this is set before they are loaded. qtool needs no network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from qtool.api import Model, Plan, emit, load, quantize, run_ptq, run_qat, simulate, verify

__all__ = [
    "Model",
    "Plan",
    "__version__",
    "emit",
    "load",
    "quantize",
    "run_ptq",
    "run_qat",
    "simulate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("qtool.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
