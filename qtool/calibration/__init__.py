"""Range estimators: statistics of one value in, its grid out. An entry's fields are its options."""

from qtool.calibration.minmax import MinMax
from qtool.calibration.mse import MSE
from qtool.calibration.percentile import Percentile

CALIBRATORS = {"minmax": MinMax, "percentile": Percentile, "mse": MSE}
