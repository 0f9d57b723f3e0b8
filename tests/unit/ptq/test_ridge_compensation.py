"""Ridge compensation: weights undo the error of their inputs, codes are the nearest ones."""

from dataclasses import replace

import numpy as np
import pytest
from contexts import calibrated
from models import BUILDERS

from qtool.graph.queries import by_name
from qtool.ptq import Gptq, RidgeCompensation
from qtool.ptq.second_order.covariance import LayerMoments, Moments
from qtool.ptq.second_order.layer_rounding import Layer, Visit
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import PerChannel, QuantParams, QuantSpec


def visit(gain: float, tied: bool = False) -> Visit:
    """A layer whose input in the quantized network is ``gain`` times the float one."""
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(1, 3, 6))
    halves = []
    for _ in range(2):
        x = rng.normal(size=(4000, 6))
        hessian = gain**2 * x.T @ x / len(x)
        error = weights @ ((1 - gain) / gain * hessian)
        halves.append(Moments(len(x), np.zeros((1, 6)), np.zeros((1, 6)), hessian[None], error))
    spec = QuantSpec(8, True, True, PerChannel(0))
    peaks = np.abs(weights[0]).max(1).astype(np.float32)
    params = QuantParams(spec, peaks / 127, np.zeros(3, np.int32))
    layer = Layer(None, weights, None, tied, True)  # only matrices are read
    return Visit(layer, LayerMoments(halves[0], tuple(halves)), params)


def test_weights_undo_a_gain():
    """Known answer: inputs of half the size, lam -> 0: T = 2 W; equal inputs: T = W."""
    half = visit(0.5)
    np.testing.assert_allclose(half.target(1e-9, 1.0), 2 * half.layer.weights, rtol=1e-6)
    same = visit(1.0)
    np.testing.assert_allclose(same.target(1e-9, 1.0), same.layer.weights, atol=1e-12)
    rounded = RidgeCompensation(damping=1e-6)._round(half)
    np.testing.assert_allclose(rounded.values, 2 * half.layer.weights, atol=2 * 0.01)
    tied = visit(0.5, tied=True)
    assert tied.target(1e-9, None) is tied.layer.weights


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_the_network_comes_nearer_to_the_float_one(name):
    plan, context = calibrated(BUILDERS[name](), Bits(weights=4, activations=4), rows=80)
    ridge, gptq = (step(plan, context) for step in (RidgeCompensation(), Gptq()))
    losses = [context.loss(p) for p in (plan, ridge.plan, gptq.plan)]
    assert losses[1] < losses[0]
    assert ridge.metrics["layers"] == gptq.metrics["layers"] > 1
    values = by_name(context.model.graph)
    for site in plan.sites.values():
        if site.weight is None:
            continue
        codes, limits = ridge.plan.codes[site.weight], plan.qparams(site.weight).spec
        assert codes.min() >= limits.qmin and codes.max() <= limits.qmax
        held = ridge.plan.weight(site.weight, values[site.weight])
        np.testing.assert_array_equal(
            held, replace(ridge.plan, codes={}).rounded_weight(site.weight, values[site.weight])
        )
