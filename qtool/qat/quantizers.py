"""The quantizers that training can use, by name.

An entry is a frozen dataclass whose fields are its options. ``weight(params, weight)`` and
``activation(params)`` make the modules (:class:`qtool.qat.grids.Quantizer`) of one grid each.
"""

from typing import Any

from qtool.qat.lsq import LSQ

QAT_QUANTIZERS: dict[str, Any] = {
    "lsq": LSQ,
}
