"""Estimate the ranges of weights with the estimators of activations (weight clipping)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from qtool.calibration.extremes import Extremes
from qtool.calibration.statistics import Calibrator, Stats
from qtool.errors import RecipeError
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams, QuantSpec


@dataclass(frozen=True)
class WeightRange:
    """The range of the weights that share a scale, by an estimator of CALIBRATORS.

    All weights are counted, and they are one sample: `mean_minmax` and `moving_average` are the
    full range.

    Source: N2D2 (CEA-LIST), "weights clipping"; Nagel et al. 2021, sec. 3.1, arXiv:2106.08295.

    Attributes:
        calibrator: the estimator.
    """

    calibrator: Calibrator

    def supports(self, spec: QuantSpec) -> None:
        """Check that the estimator is defined for weights and for a grid.

        Raises:
            ValueError: it is not; names the estimator.
        """
        for needed, name in (
            (self.calibrator.needs_batchnorm, "BatchNorm statistics"),
            (self.calibrator.needs_scores, "class scores"),
        ):
            if needed:
                raise ValueError(f"the estimator reads {name}, which weights have not; use mse")
        self.calibrator.supports(spec)

    def __call__(self, weights: np.ndarray, spec: QuantSpec) -> QuantParams:
        """Return the grid of weights.

        Args:
            weights: those that share a scale, float [N], finite.
            spec: the requested grid.
        """
        values = weights.astype(np.float32)
        lo, hi = float(values.min()), float(values.max())
        stats = Stats().counting(values, lo, hi)
        one = Extremes.of(np.array([lo]), np.array([hi]))
        return self.calibrator(replace(stats, extremes=one), spec)


def check_weights_supported(plan: QuantPlan, weights: Iterable[str], ranges: WeightRange) -> None:
    """Refuse an estimator that is not defined for the requested grids of weights.

    Args:
        plan: annotated.
        weights: names of initializers that get codes.
        ranges: from the recipe.

    Raises:
        RecipeError: names the weight, the estimator and its range.
    """
    for name in weights:
        spec = plan.grids.get(plan.grid_of.get(name, name))
        if not isinstance(spec, QuantSpec) or spec.bits == 1:
            continue  # one bit has no range
        try:
            ranges.supports(spec)
        except ValueError as error:
            text = f'the weights "{name}": {error}'
            raise RecipeError(text, ("calibrate", "weights")) from error
