"""Range estimators: compute the grid of a value from its statistics.

The fields of an entry of CALIBRATORS are its options in a recipe.
"""

from qtool.calibration.aciq import ACIQ
from qtool.calibration.auto import Auto
from qtool.calibration.batchnorm import BatchNorm
from qtool.calibration.entropy import Entropy
from qtool.calibration.histogram import Histogram
from qtool.calibration.kth_value import KthValue
from qtool.calibration.mean_minmax import MeanMinMax
from qtool.calibration.minmax import MinMax
from qtool.calibration.moving_average import MovingAverage
from qtool.calibration.mse import MSE
from qtool.calibration.percentile import Percentile
from qtool.calibration.statistics import Calibrator

CALIBRATORS: dict[str, type[Calibrator]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "mean_minmax": MeanMinMax,
    "percentile": Percentile,
    "kth_value": KthValue,
    "histogram": Histogram,
    "entropy": Entropy,
    "mse": MSE,
    "aciq": ACIQ,
    "batchnorm": BatchNorm,
    "auto": Auto,
}
