"""PyTorch's search: the same bins as its observer, and 2^bits levels below 8 bits."""

import numpy as np
import pytest

from qtool.calibration.estimators.histogram import Histogram, quantization_error, search
from qtool.calibration.estimators.mse import MSE
from qtool.calibration.histogram_error import squared_error
from qtool.calibration.statistics import Stats, summarize
from qtool.quant.primitives import QuantSpec

RNG = np.random.default_rng(6)
TENSORS = {
    "normal": RNG.normal(0, 1, 20_000),
    "relu laplace": np.maximum(RNG.laplace(0, 1, 20_000), 0),
    "relu student": np.maximum(RNG.standard_t(3, 20_000), 0),
    "skewed": RNG.gamma(2, 1, 20_000) - 1,
    "uniform": RNG.uniform(-3, 1, 20_000),
}


def seen(values) -> Stats:
    parts = np.split(np.asarray(values, np.float32), 10)
    return sum((summarize(part, True, k) for k, part in enumerate(parts)), Stats())


@pytest.mark.parametrize("levels", [4, 16, 256])
@pytest.mark.parametrize("values", TENSORS.values(), ids=TENSORS)
def test_the_search_is_that_of_pytorch(values, levels):
    """On PyTorch's own histogram: the same range within one bin, or the same error.

    PyTorch sums errors in float32: where they hardly change, it stops a few bins earlier or later.
    """
    import torch
    from torch.ao.quantization.observer import HistogramObserver

    observer = HistogramObserver()
    observer.dst_nbins = levels
    observer(torch.tensor(values, dtype=torch.float32))
    low, width = float(observer.min_val), float(observer.max_val - observer.min_val) / 2048
    lo, hi = ((float(v) - low) / width for v in observer._non_linear_param_search())
    histogram = observer.histogram.double().numpy()
    first, last = search(histogram, levels)
    theirs = round(lo), round(hi) - 1
    if max(abs(first - theirs[0]), abs(last - theirs[1])) > 1:
        errors = [quantization_error(histogram, *r, levels) for r in ((first, last), theirs)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize("values", TENSORS.values(), ids=TENSORS)
def test_mse_has_at_most_the_error_of_the_greedy_search(values):
    stats = seen(values)
    score = squared_error(stats)
    for bits in (2, 3, 4, 8):
        spec = QuantSpec(bits, False, False)
        # Both searches try different candidates: a range between two of mse's may win by a little.
        assert score(MSE()(stats, spec)) <= score(Histogram()(stats, spec)) * 1.02


def test_four_bits_need_sixteen_levels():
    """With 256 levels the range of a ReLU of Laplace stays about twice as wide."""
    stats = seen(np.maximum(RNG.laplace(0, 1, 200_000), 0))
    counts, mass = np.zeros(2048), np.concatenate([[0], np.cumsum(stats.histogram)])
    limits = np.linspace(stats.lo, stats.hi, 2049)
    counts = np.diff(np.interp(limits, stats.edges, mass))
    few, many = (search(counts, levels)[1] * stats.hi / 2048 for levels in (16, 256))
    assert 4 < few < 7 and many > 1.4 * few
    params = Histogram()(stats, QuantSpec(4, False, False))
    assert float(params.hi) == pytest.approx(few, rel=0.1)


def test_the_error_is_the_integral():
    """Two bins of one level: 2 * integral of x^2 from -1 to 0 and 0 to 1 about the center."""
    assert quantization_error(np.array([1.0, 1.0]), 0, 1, 1) == pytest.approx(2 / 3)
    # The second bin lies outside: integral of (x - 0.5)^2 from 1 to 2 = (1.5^3 - 0.5^3) / 3.
    assert quantization_error(np.array([0.0, 1.0]), 0, 0, 1) == pytest.approx(3.25 / 3)
