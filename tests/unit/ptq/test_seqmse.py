"""Sequential MSE: never worse than the full range, known answers, what is left alone."""

from dataclasses import replace

import numpy as np
import pytest
from contexts import calibrated
from models import BUILDERS, Net

from qtool.graph.queries import by_name, constant
from qtool.ptq import SeqMSE
from qtool.ptq.second_order.covariance import Moments
from qtool.ptq.second_order.im2col import matrix_layer
from qtool.ptq.seqmse import best_grid
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import (
    PerChannel,
    PerTensor,
    QuantSpec,
    fake_quantize,
    params_from_range,
)

RNG = np.random.default_rng(8)


def layer_of(weight):
    net = Net()
    net.output(net.add("MatMul", net.input("x", "N", len(weight)), net.const(weight)))
    node = next(iter(net.model().graph))
    return matrix_layer(node, weight)


def moments(weight, x, y=None):
    y = x if y is None else y
    means = x.mean(0)[None], y.mean(0)[None]
    error = weight.T @ (x - y).T @ y
    return Moments(len(x), *means, (y.T @ y)[None] / len(x), error[None] / len(x))


def full_range(weight, spec):
    axes = 0 if isinstance(spec.granularity, PerChannel) else None
    return params_from_range(weight.min(axes), weight.max(axes), spec)


def output_errors(weight, params, x, y):
    return ((x @ weight - y @ fake_quantize(weight, params)) ** 2).mean(0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1)])
def test_it_is_the_best_candidate_on_the_outputs_themselves(granularity, symmetric, bits):
    weight = RNG.standard_t(3, (20, 6))
    x = RNG.normal(0.5, RNG.uniform(0.1, 3, 20), (400, 20))
    y = x + RNG.normal(0, 0.1, x.shape)
    spec = QuantSpec(bits, symmetric, symmetric, granularity)
    start = full_range(weight, spec)
    grid = best_grid(weight, start, layer_of(weight), moments(weight, x, y), 20)
    tried = []
    for k in range(1, 21):
        low, high = (f(0 if granularity != PerTensor() else None) for f in (weight.min, weight.max))
        trial = params_from_range(k / 20 * low, k / 20 * high, spec)
        tried.append(output_errors(weight, trial, x, y))
    found = output_errors(weight, grid, x, y)
    if isinstance(granularity, PerTensor):
        assert found.sum() == pytest.approx(min(t.sum() for t in tried), rel=1e-6)
    else:
        np.testing.assert_allclose(found, np.min(tried, 0), rtol=1e-6)
    assert found.sum() <= output_errors(weight, start, x, y).sum() * (1 + 1e-9)


def test_a_weight_whose_input_is_zero_does_not_set_the_range():
    """Known answer: the error of the weights would cover 8, that of the output ignores it."""
    weight = np.array([[8.0], [1.0], [-1.0], [0.5]])
    x = RNG.normal(0, 1, (200, 4)) * [0.0, 1, 1, 1]
    spec = QuantSpec(4, True, True, PerChannel(1))
    grid = best_grid(weight, full_range(weight, spec), layer_of(weight), moments(weight, x), 20)
    assert float(grid.hi[0]) <= 1.6  # 3 / 20 or 4 / 20 of the full range
    shifted = moments(weight, x + 1)
    white = best_grid(weight, full_range(weight, spec), layer_of(weight), shifted, 20)
    assert float(white.hi[0]) > 6


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"tied"}))  # tied: the first layer decides
def test_outputs_come_closer(name, granularity):
    plan, context = calibrated(BUILDERS[name](), Bits(3, granularity=granularity), rows=128)
    widened = {
        n: replace(plan.qparams(n), scale=(3 * plan.qparams(n).scale).astype(np.float32))
        for n in (site.weight for site in plan.sites.values())
        if n
    }
    plan = replace(plan, grids={**plan.grids, **widened})
    result = SeqMSE()(plan, context)
    assert result.metrics["layers"] >= 1
    assert context.loss(result.plan) < context.loss(plan)
    assert not result.plan.codes and not result.plan.weight_overrides


def test_later_layers_see_the_chosen_ranges_of_earlier_ones():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 9, 9), 4, 8))
    plan, context = calibrated(net.output(net.conv(x, 8, 6, out="y")), Bits(2))
    chosen = SeqMSE()(plan, context).plan
    again = SeqMSE()(chosen, context).plan  # the same inputs, the same choice
    for name in (site.weight for site in plan.sites.values()):
        np.testing.assert_array_equal(chosen.qparams(name).scale, again.qparams(name).scale)


def test_fixed_scales_codes_and_int16_pairs_stay():
    plan, context = calibrated(BUILDERS["conv_bn_relu"](), Bits(4))
    weights = [site.weight for site in plan.sites.values() if site.weight]
    fixed = {
        n: replace(plan.qparams(n), spec=replace(plan.spec(n), scale_kind="power_of_two"))
        for n in weights
    }
    coded = {n: np.zeros(constant(by_name(context.model.graph)[n]).shape, np.int8) for n in weights}
    for other in (
        replace(plan, grids={**plan.grids, **fixed}),
        replace(plan, codes=coded),
    ):
        result = SeqMSE()(other, context)
        assert result.metrics["layers"] == 0 and result.plan.grids == other.grids
        assert result.notes[-1] == f"{len(weights)} weights have no range to search"
    plan, context = calibrated(BUILDERS["conv_bn_relu"]())
    paired = replace(context, target=replace(context.target, int16_pairs=True))
    assert SeqMSE()(plan, paired).metrics["layers"] == 0
    assert SeqMSE()(plan, context).metrics["layers"] == len(weights)
