"""The quantizers that training can use, by name.

An entry is a frozen dataclass whose fields are its options (:class:`base.QatQuantizer`). Its file
holds the options, the torch modules and the gradients of one paper.
"""

from qtool.qat.quantizers.base import QatQuantizer
from qtool.qat.quantizers.binary import BWN, XNOR, BinaryConnect
from qtool.qat.quantizers.dorefa import DoReFa
from qtool.qat.quantizers.ewgs import EWGS
from qtool.qat.quantizers.faq import FAQ
from qtool.qat.quantizers.gradual import NICE, Regularization
from qtool.qat.quantizers.lsq import LSQ
from qtool.qat.quantizers.lsq_plus import LSQPlus
from qtool.qat.quantizers.nonuniform import N2UQ, AdditivePowersOfTwo, KMeansCentroids, LQNets
from qtool.qat.quantizers.pact import PACT
from qtool.qat.quantizers.qil import QIL
from qtool.qat.quantizers.sat import SAT
from qtool.qat.quantizers.ste import STE
from qtool.qat.quantizers.ternary import TTQ, TWN

QAT_QUANTIZERS: dict[str, type[QatQuantizer]] = {
    "lsq": LSQ,
    "lsq_plus": LSQPlus,
    "ste": STE,
    "pact": PACT,
    "dorefa": DoReFa,
    "sat": SAT,
    "ewgs": EWGS,
    "qil": QIL,
    "lq_nets": LQNets,
    "apot": AdditivePowersOfTwo,
    "n2uq": N2UQ,
    "nice": NICE,
    "faq": FAQ,
    "regularization": Regularization,
    "binaryconnect": BinaryConnect,
    "bwn": BWN,
    "xnor": XNOR,
    "twn": TWN,
    "ttq": TTQ,
    "kmeans": KMeansCentroids,
}
