"""Channel-wise affine compensation: outputs have the float network's gain and mean afterwards."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import BUILDERS

from qtool.graph.queries import by_name
from qtool.ptq import ChannelAffineCompensation
from qtool.quant.bit_widths import Bits
from qtool.quant.chunked import codes_of
from qtool.quant.freeze import freeze
from qtool.steps.layerwise import LayerwiseRun


def regressions(plan, context):
    """Gain and offset of y_float on y_quantized of every layer, per channel."""
    found = []
    with LayerwiseRun(context, plan, "test") as run:
        for site in run.sites():
            pairs = list(run.outputs(site))
            axis = 1 if site.op == "Conv" else -1
            y, q = (
                torch.cat([p[k] for p in pairs]).movedim(axis, 0).flatten(1).double().numpy()
                for k in (0, 1)
            )
            y, mean, centred = y, q.mean(1), q - q.mean(1, keepdims=True)
            gain = (y * centred).sum(1) / (centred**2).sum(1)
            found.append((gain, (y.mean(1) - mean) / y.std(1)))
    return found


def test_gains_are_one_and_means_equal():
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=3), rows=60)
    before = regressions(plan, context)
    result = ChannelAffineCompensation(limit=10)(plan, context)
    after = regressions(result.plan, context)
    assert max(np.abs(gain - 1).max() for gain, _ in before) > 0.05
    for gain, offset in after:
        np.testing.assert_allclose(gain, 1, atol=1e-4)
        np.testing.assert_allclose(offset, 0, atol=1e-4)
    assert result.metrics["layers"] == len(after)
    assert context.loss(result.plan) < context.loss(plan)


def test_a_wrong_scale_is_found_and_codes_stay():
    """Known answer: codes on scales 1.25 times too large give outputs 1.25 times too large."""
    plan, context = calibrated(BUILDERS["residual"](), rows=60)
    values = by_name(context.model.graph)
    site = next(s for s in plan.sites.values() if s.weight is not None)
    params = plan.qparams(site.weight)
    codes = codes_of(plan.weight(site.weight, values[site.weight]), params)
    wrong = replace(params, scale=(params.scale * 1.25).astype(np.float32))
    spoiled = replace(
        plan,
        codes={site.weight: codes},
        grids={**plan.grids, plan.grid_of[site.weight]: wrong},
    )
    repaired = ChannelAffineCompensation()(spoiled, context).plan
    np.testing.assert_allclose(repaired.qparams(site.weight).scale, params.scale, rtol=0.01)
    frozen = freeze(context.model, repaired)
    assert np.array_equal(frozen.codes[site.weight], codes)


@pytest.mark.parametrize("reason", ["limit", "tensor"])
def test_where_no_gain_is_possible_only_means_are_corrected(reason):
    bits = Bits(weights=3, granularity="tensor") if reason == "tensor" else Bits(weights=3)
    plan, context = calibrated(BUILDERS["residual"](), bits, rows=60)
    limit = 1.0001 if reason == "limit" else 2.0
    result = ChannelAffineCompensation(limit=limit)(plan, context)
    if reason == "tensor":
        assert result.metrics["channels"] == 0
    for (gain, offset), (old, _) in zip(
        regressions(result.plan, context), regressions(plan, context), strict=True
    ):
        assert np.isfinite(gain).all() and np.isfinite(old).all()
        np.testing.assert_allclose(offset, 0, atol=1e-4)
    for site in plan.sites.values():
        if site.weight is not None and reason == "tensor":
            assert result.plan.qparams(site.weight) is plan.qparams(site.weight)
