"""Range estimators: compute the grid of a value from its statistics.

The fields of an entry of CALIBRATORS are its options in a recipe.
"""

from qtool.calibration.estimators.aciq import ACIQ
from qtool.calibration.estimators.auto import Auto
from qtool.calibration.estimators.batchnorm import BatchNorm
from qtool.calibration.estimators.cross_entropy import CrossEntropy
from qtool.calibration.estimators.entropy import Entropy
from qtool.calibration.estimators.histogram import Histogram
from qtool.calibration.estimators.kth_value import KthValue
from qtool.calibration.estimators.mean_minmax import MeanMinMax
from qtool.calibration.estimators.minmax import MinMax
from qtool.calibration.estimators.moving_average import MovingAverage
from qtool.calibration.estimators.mse import MSE
from qtool.calibration.estimators.percentile import Percentile
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
    "cross_entropy": CrossEntropy,
    "aciq": ACIQ,
    "batchnorm": BatchNorm,
    "auto": Auto,
}
