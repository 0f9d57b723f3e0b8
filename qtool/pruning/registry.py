"""The table of pruning methods.

An entry is a frozen pydantic dataclass that fits :class:`qtool.pruning.method.PruningMethod`; its
fields are the options of the recipe, its docstring is the help of ``qtool list pruning``.
"""

from qtool.pruning.magnitude import Magnitude
from qtool.pruning.method import PruningMethod
from qtool.pruning.obs import Obs
from qtool.pruning.wanda import Wanda

PRUNING_METHODS: dict[str, type[PruningMethod]] = {
    "magnitude": Magnitude,
    "obs": Obs,
    "wanda": Wanda,
}
