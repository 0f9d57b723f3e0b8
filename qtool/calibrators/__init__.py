"""Range estimators: statistics of one value in, its grid out. An entry's fields are its options."""

from qtool.calibrators.minmax import MinMax
from qtool.calibrators.mse import MSE
from qtool.calibrators.percentile import Percentile

CALIBRATORS = {"minmax": MinMax, "percentile": Percentile, "mse": MSE}
