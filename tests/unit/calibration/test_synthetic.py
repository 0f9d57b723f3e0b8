"""Calibration without data: values take the stated statistics, the input's scale is recovered."""

import numpy as np
import onnx_ir as ir
import pytest
from models import Net, bind, feeds_for

from qtool.calibration.synthetic import check_batchnorm, collect_synthetic, input_moments
from qtool.data import DataSection, InputSpec, open_dataset
from qtool.errors import RecipeError
from qtool.graph.queries import by_name
from qtool.rewrites import REWRITES
from qtool.runtime.executor import Executor

GAMMA, BETA = np.float32([2.0, -0.5, 0.0, 1.0]), np.float32([1.0, 0.0, 3.0, -2.0])


def network(mean=None, variance=None, pad=False, bias=True, batchnorm=True) -> Net:
    """Conv, BatchNorm, Relu, a sum with the Conv itself, GlobalAveragePool."""
    net = Net(opset=21)
    x = net.input("x", "N", 3, 24, 24)
    x = net.add("Pad", x, net.const(np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "pads")) if pad else x
    weight = net.const(np.random.default_rng(1).normal(0, 0.3, (4, 3, 3, 3)), "w")
    more = [net.const(np.float32([1, 2, 3, 4]), "bias")] if bias else []
    x = net.add("Conv", x, weight, *more, out="c")
    if batchnorm:
        vectors = [GAMMA, BETA, *(np.zeros(4) if v is None else v for v in (mean, variance))]
        vectors[3] = np.ones(4) if variance is None else variance
        parts = [net.const(np.float32(v), n) for v, n in zip(vectors, "gbmv", strict=True)]
        x = net.add("BatchNormalization", x, *parts, out="n", epsilon=0.0)
    y = net.add("Relu", x, out="r")
    y = net.add("Add", y, x, out="s")
    return net.output(net.add("GlobalAveragePool", y, out="p"))


def folded(net: Net) -> ir.Model:
    model = net.model()
    bind(model, feeds_for(model))
    REWRITES["fold_batchnorm"](model, lambda node: True)
    return model


def noise(**options):
    specs = {"x": InputSpec("x", ("N", 3, 24, 24), "float32")}
    return open_dataset(DataSection(synthetic={"ranges": "batchnorm", **options}), specs)


def test_every_channel_has_the_mean_and_deviation_of_its_batchnorm():
    model = folded(network())
    batch = next(noise().batches(16))
    stats = collect_synthetic(model, ("x", "n", "r", "s", "p"), [batch])
    values = by_name(model.graph)
    y = Executor(model)(batch, None, ["n"])["n"].numpy()
    axes = (0, 2, 3)
    shape = (1, 4, 1, 1)
    want = (y - y.mean(axes, keepdims=True)) / np.maximum(y.std(axes, keepdims=True), 1e-12)
    want = want * np.abs(GAMMA).reshape(shape) + BETA.reshape(shape)
    np.testing.assert_allclose(want.mean(axes), BETA, atol=1e-4)
    assert (stats["n"].lo, stats["n"].hi) == pytest.approx((want.min(), want.max()), rel=1e-4)
    total = np.maximum(want, 0) + want  # what follows is computed from these values
    assert (stats["s"].lo, stats["s"].hi) == pytest.approx((total.min(), total.max()), rel=1e-4)
    assert stats["r"].lo == 0 and stats["r"].hi == pytest.approx(want.max(), rel=1e-4)
    assert stats["n"].normals and stats["r"].normals and not stats["s"].normals
    assert values["n"].meta["batchnorm"][0].tolist() == BETA.tolist()


def test_statistics_have_what_the_estimators_of_real_samples_read():
    net = network()
    model = folded(net.output(net.add("Flatten", "p", out="scores")))
    batches = list(noise().take(range(40)).batches(16))
    stats = collect_synthetic(model, ("p", "scores"), batches)
    assert stats["scores"].scores.rows.shape == (40, 4) and not len(stats["p"].scores.rows)
    other = collect_synthetic(model, ("p",), batches, smoothing=0.5)
    assert other["p"].extremes.recent != stats["p"].extremes.recent


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_statistics_do_not_depend_on_the_scale_of_the_noise(scale):
    model = folded(network())
    small = collect_synthetic(model, ("n", "s"), noise(std=1.0).batches(16))
    large = collect_synthetic(model, ("n", "s"), noise(std=scale).batches(16))
    for name in ("n", "s"):
        assert large[name].lo == pytest.approx(small[name].lo, rel=1e-3)
        assert large[name].hi == pytest.approx(small[name].hi, rel=1e-3)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_mean_and_deviation_of_the_input_are_recovered(pad, bias):
    """Known answer: the BatchNorm's running statistics are measured on such an input."""
    mean, std = [120.0, -3.0, 40.0], 50.0
    plain = network(bias=bias).model()
    batches = noise(mean=mean, std=std).batches(64)
    y = np.concatenate([Executor(plain)(b, None, ["c"])["c"].numpy() for b in batches])
    model = network(y.mean((0, 2, 3)), y.var((0, 2, 3)), pad, bias).model()
    means, deviation = input_moments(model, noise())
    # The noise of 64 samples has a mean of its own, about 0.1 deviations.
    np.testing.assert_allclose(means, mean, atol=0.25 * std)
    assert deviation == pytest.approx(std, rel=0.15)


def test_there_may_be_no_batchnorm_to_solve_from():
    assert input_moments(network(batchnorm=False).model(), noise()) is None
    net = Net()
    net.output(net.add("Add", net.input("a", "N", 3), net.input("b", "N", 3)))
    assert input_moments(net.model(), noise()) is None


def test_a_folded_model_is_refused_in_a_sentence():
    model = folded(network(batchnorm=False))
    with pytest.raises(RecipeError, match="this model has none behind an integer layer") as error:
        check_batchnorm(model, ("c", "r"))
    assert error.value.key == ("calibrate", "synthetic")
    check_batchnorm(folded(network()), ("n", "r"))
