"""How the weights of one layer become codes: which values they may take, and which one each takes.

A scheme is called with the weights and the grid asked for, and returns the grid found and the codes
(None: every weight takes the nearest code, which ``freeze`` rounds).
"""

from typing import Any

from qtool.weights.binary import Binary
from qtool.weights.kmeans import KMeans
from qtool.weights.ternary import Ternary
from qtool.weights.uniform import Uniform

SCHEMES: dict[str, Any] = {
    "uniform": Uniform,
    "kmeans": KMeans,
    "binary": Binary,
    "ternary": Ternary,
}
