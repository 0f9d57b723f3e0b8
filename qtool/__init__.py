"""qtool: quantize neural networks, and prove what the file on disk does.

``qtool.load``, ``qtool.quantize``, ``qtool.simulate`` and ``qtool.emit`` are what ``qtool ptq``
does, step by step in Python. They are imported when first used: ``import qtool`` costs nothing.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtool.api import Model, Plan, emit, load, quantize, simulate

__version__ = "0.1.0"

__all__ = ["Model", "Plan", "__version__", "emit", "load", "quantize", "simulate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps ``load`` and ``emit`` the functions, where packages below have the same names.

    Importing ``qtool.loading.onnx_loader`` would otherwise put the package in the function's place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
