"""Quantize neural networks and verify the file that was written.

``qtool.load``, ``qtool.quantize``, ``qtool.simulate`` and ``qtool.emit`` are the stages of
``qtool ptq`` in Python. They are imported when first used: ``import qtool`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from qtool.version import __version__

if TYPE_CHECKING:
    from qtool.api import Model, Plan, emit, load, quantize, simulate

__all__ = ["Model", "Plan", "__version__", "emit", "load", "quantize", "simulate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("qtool.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
