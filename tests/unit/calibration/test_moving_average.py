"""Moving average of limits: known answers and its dependence on the order."""

import numpy as np
import pytest

from qtool.calibration.estimators.moving_average import MovingAverage
from qtool.calibration.statistics import Stats, summarize
from qtool.quant.primitives import QuantSpec

UINT8 = QuantSpec(8, False, False)


def seen(maxima, constant) -> Stats:
    samples = np.float32([[0, m] for m in maxima])
    return summarize(samples, False, 0, len(samples), constant)


@pytest.mark.parametrize(("constant", "expected"), [(0.1, 1.29), (0.01, 1.0299)])
def test_maxima_1_2_3(constant, expected):
    calibrator = MovingAverage(averaging_constant=constant)
    assert calibrator.smoothing == constant
    params = calibrator(seen([1, 2, 3], constant), UINT8)
    assert float(params.hi) == pytest.approx(expected, rel=1e-6)


def test_the_order_of_samples_changes_the_result():
    calibrator = MovingAverage(averaging_constant=0.1)
    assert float(calibrator(seen([3, 2, 1], 0.1), UINT8).hi) == pytest.approx(2.71, rel=1e-6)


def test_one_sample_is_its_own_average():
    assert float(MovingAverage()(seen([7], 0.01), UINT8).hi) == pytest.approx(7, rel=1e-6)


def test_it_is_that_of_pytorch_with_batches_of_one():
    from torch import from_numpy
    from torch.ao.quantization.observer import MovingAverageMinMaxObserver

    data = np.random.default_rng(1).normal(size=(50, 30)).astype(np.float32)
    observer = MovingAverageMinMaxObserver()
    for sample in data:
        observer(from_numpy(sample))
    lo, hi = summarize(data, False, 0, 50).extremes.moving
    assert (lo, hi) == pytest.approx((float(observer.min_val), float(observer.max_val)), rel=1e-5)
