"""Weight schemes: compute the grid and the codes of a layer's weights.

The fields of an entry of SCHEMES are its options in a recipe.
"""

from qtool.weights.apot import APoT
from qtool.weights.binary import Binary
from qtool.weights.kmeans import KMeans
from qtool.weights.scheme import WeightScheme
from qtool.weights.ternary import Ternary
from qtool.weights.uniform import Uniform

SCHEMES: dict[str, type[WeightScheme]] = {
    "uniform": Uniform,
    "kmeans": KMeans,
    "apot": APoT,
    "binary": Binary,
    "ternary": Ternary,
}
