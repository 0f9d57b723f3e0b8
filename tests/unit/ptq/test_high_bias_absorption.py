"""High-bias absorption: the known answer, exactness above c, and what it refuses."""

import numpy as np
import onnx_ir as ir
import pytest
from batchnorm_nets import chain, context_for, plan_for
from models import run

from qtool.errors import RecipeError
from qtool.graph.queries import by_name, constant
from qtool.ptq.high_bias_absorption import HighBiasAbsorption
from qtool.quant.freeze import freeze


def test_known_answer(tmp_path):
    """beta 5, gamma 1: c = 2; with W2 = 3 the next bias gains 6."""
    context = context_for(chain(gamma=1.0, beta=5.0, channels=1, weight=3.0, kernel=1), tmp_path)
    plan = plan_for(context)
    done = HighBiasAbsorption()(plan, context)
    values = by_name(context.model.graph)
    first, second, third = (s.bias for s in plan.sites.values() if s.weight)
    change = {k: v - constant(values[k]) for k, v in done.plan.weight_overrides.items()}
    assert change[first].item() == pytest.approx(-2, abs=1e-5)
    # The second layer's own bias falls by its c = 2 and gains 3 * 2.
    assert change[second].item() == pytest.approx(4, abs=1e-5)
    assert change[third].item() == pytest.approx(6, abs=1e-5)
    assert done.metrics["channels"] == 2


@pytest.mark.parametrize("depthwise", [False, True])
def test_the_float_function_stays_where_outputs_are_above_c(tmp_path, depthwise):
    net = chain(gamma=0.05, beta=5.0, kernel=1, depthwise=depthwise)
    context = context_for(net, tmp_path)
    done = HighBiasAbsorption()(plan_for(context), context)
    assert done.metrics["channels"] > 0 and done.metrics["float_error"] < 1e-5
    x = {"x": next(iter(context.calibration.batches(8)))["x"]}
    want = run(context.model, x)["y"]
    for name, array in done.plan.weight_overrides.items():
        by_name(context.model.graph)[name].const_value = ir.Tensor(array, name=name)
    np.testing.assert_allclose(run(context.model, x)["y"], want, rtol=1e-4, atol=1e-4)


def test_grids_of_activations_shrink(tmp_path):
    context = context_for(chain(gamma=0.2, beta=5.0), tmp_path)
    plan = plan_for(context)
    done = HighBiasAbsorption(padded=True)(plan, context).plan
    outputs = [s.output for s in plan.sites.values() if s.weight][:2]
    for name in outputs:
        assert done.params(name).scale < 0.5 * plan.params(name).scale
        assert done.params(name).zero_point == plan.params(name).zero_point
    freeze(context.model, done)


def test_layers_that_pad_may_be_left_out(tmp_path):
    context = context_for(chain(gamma=0.2, beta=5.0), tmp_path)
    done = HighBiasAbsorption()(plan_for(context), context)
    assert not done.plan.weight_overrides


@pytest.mark.parametrize(("beta", "absorbs"), [(5.0, False), (3.0, True)])
def test_a_clip_that_is_reached_keeps_its_bias(tmp_path, beta, absorbs):
    context = context_for(chain(gamma=0.5, beta=beta, clip=6.0), tmp_path)
    done = HighBiasAbsorption(padded=True)(plan_for(context), context)
    assert bool(done.plan.weight_overrides) == absorbs


def test_a_model_without_batchnorm_is_refused(tmp_path):
    context = context_for(chain(norm=False), tmp_path)
    with pytest.raises(RecipeError, match="export the model"):
        HighBiasAbsorption()(plan_for(context), context)
