"""BatchNorm re-estimation: every channel has the mean and deviation of its BatchNorm afterwards."""

import numpy as np
import pytest
from batchnorm_nets import chain, context_for, plan_for
from contexts import keep_every_layer

from qtool.errors import RecipeError
from qtool.graph.queries import by_name
from qtool.ptq import BatchNormReestimation
from qtool.ptq.channel_affine import ChannelAffine, output_moments
from qtool.quant.freeze import freeze
from qtool.steps.layerwise import LayerwiseRun


def moments(plan, context) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of the outputs of the layers with a BatchNorm, quantized network."""
    with LayerwiseRun(context, plan, "test") as run:
        each = [output_moments(run, site) for site in run.sites()]
    return [(part.mean, np.sqrt(part.variance)) for part in each[:2]]


def weights(plan) -> list[str]:
    return [site.weight for site in plan.sites.values() if site.weight is not None]


def test_channels_have_the_mean_and_deviation_of_their_batchnorm(tmp_path, monkeypatch):
    keep_every_layer(monkeypatch)
    context = context_for(chain(gamma=0.5, beta=0.3), tmp_path, scale=0.25)
    plan = plan_for(context, bits=3)
    result = BatchNormReestimation(limit=100)(plan, context)
    assert result.metrics == {"layers": 2, "channels": 8}
    before, after = moments(plan, context), moments(result.plan, context)
    assert max(np.abs(deviation - 0.5).max() for _, deviation in before) > 0.05
    for mean, deviation in after:
        np.testing.assert_allclose(mean, 0.3, atol=1e-4)
        np.testing.assert_allclose(deviation, 0.5, rtol=1e-3)
    first, second = freeze(context.model, plan), freeze(context.model, result.plan)
    for name in weights(plan):
        assert np.array_equal(first.codes[name], second.codes[name])


def test_a_second_estimation_changes_nothing(tmp_path, monkeypatch):
    keep_every_layer(monkeypatch)
    context = context_for(chain(gamma=0.5, beta=0.3), tmp_path, scale=0.25)
    once = BatchNormReestimation(limit=100)(plan_for(context, bits=3), context).plan
    twice = BatchNormReestimation(limit=100)(once, context).plan
    for name in weights(once):
        np.testing.assert_allclose(twice.qparams(name).scale, once.qparams(name).scale, rtol=1e-4)


def test_channels_beyond_the_limit_stay(tmp_path):
    context = context_for(chain(gamma=0.5, beta=0.3), tmp_path, scale=0.25)
    plan = plan_for(context, bits=3)
    result = BatchNormReestimation(limit=1.000001)(plan, context)
    assert result.metrics["channels"] == 0
    for name in weights(plan):
        assert np.array_equal(result.plan.qparams(name).scale, plan.qparams(name).scale)


def test_a_model_without_batchnorm_is_refused(tmp_path):
    context = context_for(chain(norm=False), tmp_path)
    with pytest.raises(RecipeError, match="this model has none that was folded into a layer"):
        BatchNormReestimation()(plan_for(context), context)


def test_an_affine_change_maps_the_outputs(tmp_path):
    context = context_for(chain(), tmp_path, scale=0.25)
    plan = plan_for(context)
    site = next(s for s in plan.sites.values() if s.weight)
    gain, shift = np.array([1.0, 0.5, 2.0, 1.5]), np.array([0.0, 1.0, -1.0, 0.25])
    changed = ChannelAffine(gain, shift).applied(plan, site, by_name(context.model.graph))
    old, new = moments(plan, context)[0][0], moments(changed, context)[0][0]
    np.testing.assert_allclose(new, gain * old + shift, atol=1e-5)
