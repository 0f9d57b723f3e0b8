"""The quantizers that training can use, by name.

An entry is a frozen dataclass whose fields are its options. ``weight(params, weight)`` and
``activation(params)`` make the modules (:class:`qtool.qat.grids.Quantizer`) of one grid each.
"""

from typing import Any

from qtool.qat.dorefa import DoReFa
from qtool.qat.ewgs import EWGS
from qtool.qat.lsq import LSQ
from qtool.qat.lsq_plus import LSQPlus
from qtool.qat.pact import PACT
from qtool.qat.sat import SAT
from qtool.qat.ste import STE

QAT_QUANTIZERS: dict[str, Any] = {
    "lsq": LSQ,
    "lsq_plus": LSQPlus,
    "ste": STE,
    "pact": PACT,
    "dorefa": DoReFa,
    "sat": SAT,
    "ewgs": EWGS,
}
