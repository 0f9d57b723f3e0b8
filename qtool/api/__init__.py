"""The Python API: load a float network, quantize it with data, simulate it, write it.

The same stages as in ``qtool ptq``, called one after another; see docs/api.md.
"""

from qtool.api.model import Model, load
from qtool.api.quantization import Plan, QuantizeOptions, quantize
from qtool.api.runs import run_ptq, run_qat, verify
from qtool.api.simulation import emit, simulate

__all__ = [
    "Model",
    "Plan",
    "QuantizeOptions",
    "emit",
    "load",
    "quantize",
    "run_ptq",
    "run_qat",
    "simulate",
    "verify",
]
