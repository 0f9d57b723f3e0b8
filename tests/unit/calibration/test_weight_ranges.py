"""Weight clipping: known answers, every estimator at every granularity, refusals."""

import numpy as np
import pytest
from models import cpu, two_convs

from qtool.annotation.annotator import annotate
from qtool.calibration import CALIBRATORS, MSE, Entropy, MeanMinMax, MinMax, Percentile
from qtool.calibration.weight_ranges import WeightRange, check_weights_supported
from qtool.errors import RecipeError
from qtool.graph.queries import constant
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import PerBlock, PerChannel, PerTensor, QuantSpec, fake_quantize
from qtool.weights import Uniform
from qtool.weights.estimated import EstimatedRanges
from qtool.weights.grids import weight_grids

RNG = np.random.default_rng(6)
WEIGHTS = RNG.normal(0, [[1.0], [0.1], [30.0]], (3, 20_000)).astype(np.float32)
ROWS = QuantSpec(4, True, True, PerChannel(0))
FOR_WEIGHTS = [
    name
    for name, entry in CALIBRATORS.items()
    if not entry.needs_batchnorm and not entry.needs_scores
]


def grid(calibrator, weights=WEIGHTS, spec=ROWS):
    return EstimatedRanges(WeightRange(calibrator))(weights, spec)[0]


def errors(params, weights=WEIGHTS):
    return ((weights - fake_quantize(weights, params)) ** 2).mean(1) / weights.var(1)


def test_four_bit_gaussian_channels():
    """Known answers, narrow grid, relative to the variance: optimum 0.01289, 4 sigma 0.02722."""
    np.testing.assert_allclose(errors(grid(MSE())), 0.01289, rtol=0.03)
    full = errors(grid(MinMax()))
    assert (full > 0.0240).all()  # the largest of 20,000 is about 4 sigma
    assert (errors(grid(MSE())) < full).all()


def test_ranges_of_one_sample_are_the_full_range():
    for calibrator in (MinMax(), MeanMinMax(), Percentile(q=1.0)):
        params = grid(calibrator)
        np.testing.assert_allclose(params.hi, np.abs(WEIGHTS).max(1), rtol=1e-6)
        assert params.scale.shape == (3,) and params.scale.dtype == np.float32


def test_every_weight_counts():
    """An outlier of 40,000 weights is in the histogram wherever it stands."""
    weights = RNG.normal(0, 1, (1, 40_000)).astype(np.float32)
    weights[0, 12_345] = 1000
    for calibrator in (Percentile(q=1.0), MSE(candidates=1000)):
        assert grid(calibrator, weights, QuantSpec(16, True, True, PerTensor())).hi > 990


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerBlock(1, 5)])
@pytest.mark.parametrize("name", FOR_WEIGHTS)
def test_every_estimator_and_granularity(name, granularity, symmetric, bits):
    weights = RNG.standard_t(3, (4, 12)).astype(np.float32)
    weights[2] = 0  # a block and rows without any weight
    spec, calibrator = QuantSpec(bits, symmetric, symmetric, granularity), CALIBRATORS[name]()
    if bits > 8 and name == "entropy":
        with pytest.raises(ValueError, match="2 to 8 bits"):
            WeightRange(calibrator).supports(spec)
        return
    params = grid(calibrator, weights, spec)
    want = Uniform()(weights, spec)[0]
    assert params.scale.shape == want.scale.shape and params.spec == spec
    assert np.isfinite(params.scale).all() and (params.scale > 0).all()
    assert np.isfinite(fake_quantize(weights, params)).all()
    assert not fake_quantize(weights, params)[2].any()  # zero is exact


@pytest.mark.parametrize(
    ("calibrator", "bits", "message"),
    [
        (CALIBRATORS["batchnorm"](), 8, "reads BatchNorm statistics, which weights have not"),
        (CALIBRATORS["cross_entropy"](), 8, "reads class scores, which weights have not"),
        (Entropy(), 12, "entropy is defined for 2 to 8 bits, found 12"),
    ],
)
def test_estimators_that_are_not_defined_are_refused(calibrator, bits, message):
    model = two_convs().model()
    plan = annotate(model, cpu(), Bits(bits))
    with pytest.raises(RecipeError, match=message) as error:
        check_weights_supported(plan, ("w",), WeightRange(calibrator))
    assert error.value.key == ("calibrate", "weights")


@pytest.mark.parametrize("bits", [4, 8])
def test_the_plan_takes_the_estimated_ranges_at_every_width(bits):
    model = two_convs().model()
    plan = annotate(model, cpu(), Bits(bits))
    clipped = weight_grids(model, plan, EstimatedRanges(WeightRange(Percentile(q=0.9))))
    default = weight_grids(model, plan)
    assert (clipped.qparams("w").scale < default.qparams("w").scale).any()
    assert clipped.qparams("w").spec == default.qparams("w").spec
    assert np.abs(constant(model.graph.initializers["w"])).max() > clipped.qparams("w").hi.max()
