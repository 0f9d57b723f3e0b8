"""How the weights of one layer become codes: which values they may take, and which one each takes.

A scheme is called with the weights and the grid asked for, and returns the grid found and the codes
(None: every weight takes the nearest code, which ``freeze`` rounds).
"""

from typing import Any

from qtool.schemes.binary import Binary
from qtool.schemes.kmeans import KMeans
from qtool.schemes.ternary import Ternary
from qtool.schemes.uniform import Uniform

SCHEMES: dict[str, Any] = {
    "uniform": Uniform,
    "kmeans": KMeans,
    "binary": Binary,
    "ternary": Ternary,
}
