"""Range estimators: compute the grid of a value from its statistics.

The fields of an entry of CALIBRATORS are its options in a recipe.
"""

from qtool.calibration.minmax import MinMax
from qtool.calibration.mse import MSE
from qtool.calibration.percentile import Percentile
from qtool.calibration.statistics import Calibrator

CALIBRATORS: dict[str, type[Calibrator]] = {"minmax": MinMax, "percentile": Percentile, "mse": MSE}
