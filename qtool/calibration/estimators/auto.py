"""Choose the estimator of each value by its expected squared error."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, replace
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.estimators.aciq import ACIQ
from qtool.calibration.estimators.entropy import Entropy
from qtool.calibration.estimators.histogram import Histogram
from qtool.calibration.estimators.mean_minmax import MeanMinMax
from qtool.calibration.estimators.minmax import MinMax
from qtool.calibration.estimators.moving_average import MovingAverage
from qtool.calibration.estimators.mse import MSE
from qtool.calibration.estimators.percentile import Percentile
from qtool.calibration.histogram_error import squared_error
from qtool.calibration.statistics import Calibrator, Stats, estimate
from qtool.quant.primitives import QuantParams, QuantSpec

CANDIDATES: dict[str, Calibrator] = {
    "minmax": MinMax(),
    "mean_minmax": MeanMinMax(),
    "moving_average": MovingAverage(),
    "percentile": Percentile(),
    "percentile 99.9": Percentile(q=0.999),
    "aciq": ACIQ(),
    "histogram": Histogram(),
    "mse": MSE(),
}
"""From the simplest; entropy is left out, as it does not look at the error of a value."""

FINALISTS: dict[str, Calibrator] = {
    "minmax": MinMax(),
    "mean_minmax": MeanMinMax(),
    "mse": MSE(),
    "mse p=2.4": MSE(p=2.4),
    "aciq": ACIQ(),
    "percentile 99": Percentile(q=0.99),
    "histogram": Histogram(),
    "entropy n2d2": Entropy(form="n2d2"),
}
"""Those from `aciq` on clip more than the squared error does, as some networks need."""

# A candidate must lower the error by this share to win over a simpler one.
TIE = 0.01


@dataclass(frozen=True)
class Auto(Calibrator):
    """Choose, value by value, the estimator whose range has the least squared error.

    minimize over estimators: E[(x - fake_quantize(x))^2], on the histogram of the one pass

    A difference of less than 1 % goes to the simpler estimator. Clipped inputs of linear layers are
    searched again by the error of the layers' outputs, as with `mse`. The result is compared with
    single estimators for all values (`minmax`, `mean_minmax`, `mse`, `mse` with p = 2.4, `aciq`,
    `percentile` with q = 0.99, `histogram`, up to 8 bits `entropy` in N2D2's form), by the output
    of the network on up to 64 calibration samples from which no range was estimated; one that is
    nearer to the float network replaces it, where the difference is 5 % and twice its standard
    error over the samples. Some single ranges are then replaced by those of another of these where
    that lowers the distance as much, the values first on which the estimators differ most. Weights
    stay unrounded meanwhile. The report says which estimator was chosen where.

    Args:
        single_ranges: ranges that are tried one after the other, at most; each costs a simulation.

    Source: the criterion is that of Nagel et al. 2021, sec. 3.1, arXiv:2106.08295. Departure: it
        compares estimators, and not the candidates of one search alone.
    """

    by_output: ClassVar[bool] = True
    finalists: ClassVar[Mapping[str, Calibrator]] = FINALISTS
    _: KW_ONLY
    single_ranges: int = Field(default=32, ge=0)

    @property
    def trials(self) -> int:
        """Single ranges that are tried at most."""
        return self.single_ranges

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid of the chosen estimator."""
        return self.select(stats, spec)[1]

    def select(self, stats: Stats, spec: QuantSpec) -> tuple[str, QuantParams]:
        """Return the name of the chosen estimator, and its grid."""
        names, params = [*CANDIDATES], [estimate(c, stats, spec) for c in CANDIDATES.values()]
        score, best = squared_error(stats), 0
        if score is not None:
            scale, zero_point = (
                np.stack([getattr(p, field) for p in params]) for field in ("scale", "zero_point")
            )
            errors = score(replace(params[0], scale=scale, zero_point=zero_point))
            for k, error in enumerate(errors):
                best = k if error < errors[best] * (1 - TIE) else best
        return names[best], params[best]
