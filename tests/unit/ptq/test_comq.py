"""COMQ: coordinate descent from the nearest codes, never to a larger error of a layer's output."""

from dataclasses import replace

import numpy as np
import pytest
from contexts import calibrated
from models import BUILDERS
from test_ridge_compensation import visit

from qtool.graph.queries import by_name
from qtool.ptq import Comq, RidgeCompensation
from qtool.ptq.second_order.hessian_rounding import damped, row_errors
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import PerChannel, QuantSpec


@pytest.mark.parametrize("kind", ["float", "power_of_two"])
def test_a_layer_errs_less_than_by_nearest_codes(kind):
    layer = visit(1.0)
    spec = QuantSpec(3, True, True, PerChannel(0), scale_kind=kind)
    scale = (np.abs(layer.layer.weights[0]).max(1) / 3).astype(np.float32)
    scale = scale if kind == "float" else np.full(3, 0.5, np.float32)
    layer = replace(layer, params=replace(layer.params, spec=spec, scale=scale))
    weights, hessian = layer.layer.weights, damped(layer.moments.total.hessian, 0.01)
    # Inputs that depend on each other: else nearest codes are the best ones.
    mixing = np.eye(6) + 0.8
    hessian = mixing @ hessian @ mixing
    total = replace(layer.moments.total, hessian=hessian)
    layer = replace(layer, moments=replace(layer.moments, total=total))
    result, start = (
        Comq()._round(layer),
        layer.nearest(weights, layer.scale(weights, damped(hessian, 0.01))),
    )
    errors = [row_errors(weights - r.values, damped(hessian, 0.01)).sum() for r in (result, start)]
    assert errors[0] < errors[1]
    assert result.codes.min() >= spec.qmin and result.codes.max() <= spec.qmax
    if kind != "float":
        np.testing.assert_array_equal(result.scale, start.scale)


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_the_network_comes_nearer_to_the_float_one(name):
    plan, context = calibrated(BUILDERS[name](), Bits(weights=4, activations=8), rows=80)
    done = Comq()(plan, context)
    assert context.loss(done.plan) < context.loss(plan)
    assert done.metrics == RidgeCompensation()(plan, context).metrics
    values = by_name(context.model.graph)
    for site in plan.sites.values():
        if site.weight is not None:
            assert done.plan.weight(site.weight, values[site.weight]).dtype == np.float32
            assert site.weight in done.plan.codes
