"""Analytic bias correction: known answers, and the mean error it removes on normal inputs."""

import numpy as np
import pytest
from batchnorm_nets import chain, context_for, plan_for, share_bias
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.errors import RecipeError
from qtool.graph.queries import by_name, constant
from qtool.ptq.analytic_bias_correction import AnalyticBiasCorrection, Moments, clipped, moments
from qtool.ptq.bias_correction import BiasCorrection
from qtool.ptq.gptq import Gptq
from qtool.ptq.high_bias_absorption import HighBiasAbsorption
from qtool.quant.primitives import fake_quantize


@pytest.mark.parametrize(
    ("beta", "gamma", "high", "mean"),
    [
        (0, 1, np.inf, 0.398942),
        (1, 2, np.inf, 1.395593),
        (-1, 0.5, np.inf, 0.00424531),
        (1, 2, 6, 1.391585),
        (5, 2, 6, 4.608415),
        (3, 0, 6, 3.0),
        (-3, 0, 6, 0.0),
        (9, 0, 6, 6.0),
    ],
)
def test_known_answers(beta, gamma, high, mean):
    x = Moments(np.array([float(beta)]), np.array([float(gamma) ** 2]))
    assert clipped(x, 0.0, high).mean[0] == pytest.approx(mean, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.floats(-3, 3), st.floats(0.1, 3), st.sampled_from([(0, np.inf), (0, 6), (-1, 1), (-2, 4)])
)
def test_moments_are_those_of_samples(beta, gamma, limits):
    z = np.random.default_rng(0).normal(size=200_000)
    y = np.clip(beta + gamma * z, *limits)
    got = clipped(Moments(np.array([beta]), np.array([gamma**2])), *limits)
    assert got.mean[0] == pytest.approx(y.mean(), abs=0.02)
    assert got.variance[0] == pytest.approx(y.var(), abs=0.05, rel=0.05)


def test_the_correction_is_the_error_times_the_mean(tmp_path):
    context = context_for(chain(gamma=1.0, beta=0.0), tmp_path)
    plan = plan_for(context, bits=4)
    done = AnalyticBiasCorrection()(plan, context)
    values = by_name(context.model.graph)
    sites = [site for site in plan.sites.values() if site.weight]
    assert set(done.plan.weight_overrides) == {site.bias for site in sites[1:]}
    assert done.metrics == {"layers": len(sites) - 1}
    for site in sites[1:]:
        weight = constant(values[site.weight])
        error = fake_quantize(weight, plan.params(site.weight)) - weight
        flat = error.sum(axis=tuple(range(2, error.ndim)))
        shift = flat.reshape(len(weight), -1).sum(1) * 0.398942
        new = done.plan.weight_overrides[site.bias]
        np.testing.assert_allclose(new, constant(values[site.bias]) - shift, atol=1e-5)


def test_absorption_shifts_the_means_and_no_other(tmp_path):
    context = context_for(chain(gamma=0.5, beta=4.0), tmp_path)
    absorbed = HighBiasAbsorption(padded=True)(plan_for(context), context).plan
    graph = context.model.graph
    before = moments(graph, {}, {})
    after = moments(graph, absorbed.weight_overrides, before)
    first, second, third = (n for n in graph if n.op_type == "Conv")
    for conv, shift in ((first, 2.5), (second, 2.5), (third, 0.0)):
        name = conv.outputs[0].name
        np.testing.assert_allclose(before[name].mean - after[name].mean, shift, atol=2e-3)


def test_a_model_without_batchnorm_is_refused(tmp_path):
    context = context_for(chain(norm=False), tmp_path)
    with pytest.raises(RecipeError, match="use bias_correction"):
        AnalyticBiasCorrection()(plan_for(context), context)


@pytest.mark.parametrize(
    "step", [AnalyticBiasCorrection(), BiasCorrection(), HighBiasAbsorption(padded=True)]
)
def test_a_bias_that_two_layers_share_is_left_as_it_is(step, tmp_path):
    """What one layer needs is wrong for the other."""
    context = context_for(chain(gamma=0.2, beta=5.0), tmp_path)
    alone = plan_for(context, bits=4)
    changed = step(alone, context).plan.weight_overrides
    plan, shared = share_bias(context, alone)
    assert shared in changed
    assert shared not in step(plan, context).plan.weight_overrides


def test_a_bias_that_was_chosen_with_the_codes_is_not_corrected_again(tmp_path):
    context = context_for(chain(gamma=1.0, beta=0.0), tmp_path)
    plan = plan_for(context, bits=4)
    rounded = Gptq()(plan, context).plan
    done = AnalyticBiasCorrection()(rounded, context)
    assert rounded.weight_overrides and done.metrics == {"layers": 0}
    for name, array in rounded.weight_overrides.items():
        np.testing.assert_array_equal(done.plan.weight_overrides[name], array)
