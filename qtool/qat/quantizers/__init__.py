"""The quantizers that training can use, by name.

An entry is a frozen dataclass whose fields are its options. ``weight(params, weight)`` and
``activation(params)`` make the modules of one grid each (``grids.Quantizer``).
"""

from typing import Any

from qtool.qat.quantizers.dorefa import DoReFa
from qtool.qat.quantizers.ewgs import EWGS
from qtool.qat.quantizers.lsq import LSQ
from qtool.qat.quantizers.lsq_plus import LSQPlus
from qtool.qat.quantizers.pact import PACT
from qtool.qat.quantizers.sat import SAT
from qtool.qat.quantizers.ste import STE

QAT_QUANTIZERS: dict[str, Any] = {
    "lsq": LSQ,
    "lsq_plus": LSQPlus,
    "ste": STE,
    "pact": PACT,
    "dorefa": DoReFa,
    "sat": SAT,
    "ewgs": EWGS,
}
