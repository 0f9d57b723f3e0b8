"""Mean of the samples' limits: the known answer."""

import numpy as np
import pytest

from qtool.calibration.estimators.mean_minmax import MeanMinMax
from qtool.calibration.statistics import summarize
from qtool.quant.primitives import QuantSpec

SPEC = QuantSpec(8, False, False)


def test_samples_are_averaged_whatever_the_batches():
    """Known answer: samples [-1, 2] and [-3, 10] give (-2, 6)."""
    together = summarize(np.float32([[-1, 2], [-3, 10]]), False, 0, 2)
    apart = summarize(np.float32([[-1, 2]]), False, 0) + summarize(np.float32([[-3, 10]]), False, 1)
    for stats in (together, apart):
        assert stats.extremes.mean == (-2, 6)
        params = MeanMinMax()(stats, SPEC)
        assert float(params.scale) == pytest.approx(8 / 255, rel=1e-6)
        assert params.zero_point == 64


def test_a_symmetric_grid_takes_the_larger_side():
    stats = summarize(np.float32([[-1, 2], [-3, 10]]), False, 0, 2)
    assert float(MeanMinMax()(stats, QuantSpec(8, True, True)).hi) == pytest.approx(6, rel=1e-6)
