"""BatchNorm ranges: known answers, and a model that has none."""

import numpy as np
import pytest
from models import Net, bind, cpu, feeds_for

from qtool.annotation.annotator import annotate
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.calibration.estimators.batchnorm import BatchNorm
from qtool.calibration.statistics import ChannelNormals, Stats
from qtool.calibration.supported import check_supported
from qtool.errors import RecipeError
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import QuantSpec
from qtool.rewrites import REWRITES

BETA, GAMMA = np.float32([0, 1]), np.float32([1, -0.5])
SPEC = QuantSpec(8, False, False)


def test_six_deviations_of_every_channel():
    """Known answers: beta = [0, 1], gamma = [1, 0.5], n = 6 give (-6, 6); with a Relu (0, 6)."""
    plain = ChannelNormals(np.array([0.0, 1]), np.array([1, 0.5]))
    assert plain.limits(6) == (-6, 6)
    assert ChannelNormals(plain.mean, plain.std, lo=0.0).limits(6) == (0, 6)
    assert ChannelNormals(plain.mean, plain.std, 0.0, 3.5).limits(6) == (0, 3.5)
    params = BatchNorm()(Stats(-1, 1, normals=(plain,)), SPEC)
    assert (float(params.lo), float(params.hi)) == pytest.approx((-6, 6), abs=0.03)


def test_two_values_on_one_grid_are_covered():
    a = Stats(-1, 1, normals=(ChannelNormals(np.zeros(1), np.ones(1)),))
    b = Stats(-1, 1, normals=(ChannelNormals(np.full(1, 20.0), np.ones(1)),))
    assert float(BatchNorm()(a | b, SPEC).hi) == pytest.approx(26, rel=0.01)
    assert not (a | Stats(-9, 9)).normals  # the other one is only observed
    assert float(BatchNorm()(a | Stats(-9, 9), SPEC).hi) == pytest.approx(9, rel=0.01)


def network(tmp_path, op: str | None, batchnorm: bool = True):
    net = Net(opset=21)
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 2, out="c")
    if batchnorm:
        parts = [net.const(p, n) for p, n in ((GAMMA, "g"), (BETA, "b"))]
        parts += [net.const(np.zeros(2, np.float32), "m"), net.const(np.ones(2, np.float32), "v")]
        x = net.add("BatchNormalization", x, *parts, out="n")
    if op == "Relu":
        x = net.add("Relu", x, out="r")
    if op == "Clip":
        limits = [net.const(np.float32(v), n) for v, n in ((0, "low"), (2.5, "high"))]
        x = net.add("Clip", x, *limits, out="r")
    net.output(net.conv(x, 2, 2, out="y"))
    model = net.load(tmp_path)
    bind(model, feeds_for(model))
    REWRITES["fold_batchnorm"](model, lambda node: True)
    return model


@pytest.mark.parametrize(
    ("op", "expected"), [(None, (-6, 6)), ("Relu", (0, 6)), ("Clip", (0, 2.5))]
)
def test_the_range_is_read_from_the_folded_batchnorm(tmp_path, op, expected):
    model = network(tmp_path, op)
    plan = annotate(model, cpu(), Bits())
    names = observed_values(model, plan)
    check_supported(model, plan, names, BatchNorm())
    stats = collect(model, names, [feeds_for(model)], histograms=False)
    grids = choose_grids(plan, stats, BatchNorm())
    reader = next(
        node for node in model.graph if node.op_type == "Conv" and node.outputs[0].name == "y"
    )
    params = grids.params(reader.inputs[0].name)
    assert (float(params.lo), float(params.hi)) == pytest.approx(expected, abs=0.03)
    x = grids.params("x")  # the input has no BatchNorm: its range is that of the data
    assert float(x.hi) == pytest.approx(stats["x"].hi, abs=float(x.scale))


def test_a_model_without_batchnorm_is_refused(tmp_path):
    model = network(tmp_path, "Relu", batchnorm=False)
    plan = annotate(model, cpu(), Bits())
    with pytest.raises(RecipeError, match="this model has none behind an integer layer") as error:
        check_supported(model, plan, observed_values(model, plan), BatchNorm())
    assert error.value.exit_code == 2 and error.value.key == ("calibrate", "method")
