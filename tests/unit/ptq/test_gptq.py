"""The step: less error, codes on their grids, biases, tied weights, parity with ONNX Runtime."""

from dataclasses import replace

import numpy as np
import pytest
from contexts import calibrated, keep_every_layer, samples
from models import BUILDERS, Net, cpu, run

import qtool
from qtool.emitters import emit_qdq
from qtool.ptq import Gptq
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.primitives import fake_quantize
from qtool.simulation.fake_quant import Simulation
from qtool.steps import layer_guard

FOUR = Bits(weights=4)


@pytest.mark.parametrize("name", BUILDERS)
def test_outputs_come_closer_and_the_file_computes_them(name):
    plan, context = calibrated(BUILDERS[name](), FOUR, rows=128)
    result = Gptq()(plan, context)
    assert result.metrics["layers"] >= 1
    before, after = context.loss(plan), context.loss(result.plan)
    assert after < before
    frozen = freeze(context.model, result.plan)
    for weight in (site.weight for site in plan.sites.values() if site.weight):
        spec, codes = frozen.spec(weight), frozen.codes[weight]
        assert spec == plan.spec(weight)
        assert codes.min() >= spec.qmin and codes.max() <= spec.qmax
    feeds = samples(context.model, 4, seed=9)
    want = Simulation(context.model, frozen)(feeds)
    got = run(emit_qdq(context.model, frozen, cpu()), feeds)
    for output, array in got.items():
        reference = want[output].numpy()
        # One code of the last layer's input may differ where float32 sums end half-way.
        assert np.abs(array - reference).max() <= 0.02 * np.abs(reference).max()


def mean_shift(plan, context, output):
    """Mean difference of a layer's output in the quantized network, on the fit samples."""
    feeds = next(context.feeds(context.fit, context.fit.count))[0]
    feeds = {name: array[: context.fit.count] for name, array in feeds.items()}
    run_one = Simulation(context.model, freeze(context.model, plan))
    want = run(context.model, feeds)[output]
    return np.abs((run_one(feeds)[output].numpy() - want).mean((0, 2, 3))), want.std()


def test_the_bias_removes_the_mean_error():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 9, 9), 4, 8))
    plan, context = calibrated(net.output(net.conv(x, 8, 6, out="y")), FOUR)
    before, scale = mean_shift(plan, context, "y")
    after, _ = mean_shift(Gptq()(plan, context).plan, context, "y")
    # The bias has a grid of its own, the last input is rounded, and large rows weigh less.
    assert before.max() > 0.01 * scale
    assert after.max() < 0.004 * scale


def test_only_biases_change_at_eight_bits_unless_all_are_rounded(monkeypatch):
    keep_every_layer(monkeypatch)
    plan, context = calibrated(BUILDERS["residual"]())
    result = Gptq(bits="below_8")(plan, context)
    assert result.metrics["layers"] == 0 and not result.plan.codes
    biases = {site.bias for site in plan.sites.values() if site.bias}
    assert set(result.plan.weight_overrides) == biases
    assert Gptq(bits="all")(plan, context).metrics["layers"] == 4
    paired = replace(context, target=replace(context.target, int16_pairs=True))
    assert Gptq(bits="all")(plan, paired).metrics["layers"] == 0


def test_tied_weights_that_the_first_layer_refuses_stay_for_the_others(monkeypatch):
    passed = set()

    def errors(run, site, plans):
        first = site.weight not in passed
        passed.add(site.weight)
        return [0.0, 1.0] if first else [1.0, 0.0]

    monkeypatch.setattr(layer_guard, "relative_errors", errors)
    plan, context = calibrated(BUILDERS["tied"](), FOUR)
    result = Gptq()(plan, context)
    assert passed == {"w", "m"} and len(result.rows) > 0
    assert result.plan.codes == plan.codes


def test_tied_weights_are_rounded_once_and_every_bias_is_corrected():
    plan, context = calibrated(BUILDERS["tied"](), FOUR)
    result = Gptq()(plan, context)
    weights = {site.weight for site in plan.sites.values() if site.weight}
    assert result.metrics["layers"] == len(weights) == 2
    biases = {site.bias for site in plan.sites.values() if site.bias}
    assert len(biases) == 4 and set(result.plan.weight_overrides) == weights | biases


@pytest.mark.parametrize("options", [{"asymmetric": True}, {"asymmetric": False, "refine": 0}])
def test_options(options):
    plan, context = calibrated(BUILDERS["conv_bn_relu"](), FOUR, rows=128)
    result = Gptq(**options, act_order=False, ranges=False, block=7)(plan, context)
    assert context.loss(result.plan) < context.loss(plan)
    if not options.get("refine", 1):  # neither ranges nor a refit: the scales are the plan's
        for site in plan.sites.values():
            if site.weight:
                old, new = plan.params(site.weight), result.plan.params(site.weight)
                np.testing.assert_array_equal(old.scale, new.scale)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scale", ["float", "power_of_two"])
def test_scales_have_the_shape_and_form_of_the_grid(granularity, scale):
    bits = Bits(weights=4, granularity=granularity)
    plan, context = calibrated(BUILDERS["depthwise"](), bits)
    if scale != "float":
        grids = {
            name: replace(
                grid,
                spec=replace(grid.spec, scale_kind=scale),
                scale=np.exp2(np.ceil(np.log2(grid.scale))).astype(np.float32),
            )
            for name, grid in plan.grids.items()
            if hasattr(grid, "spec") and grid.spec.signed
        }
        plan = replace(plan, grids={**plan.grids, **grids})
    result = Gptq()(plan, context).plan
    for site in plan.sites.values():
        if site.weight:
            old, new = plan.params(site.weight), result.params(site.weight)
            assert old.scale.shape == new.scale.shape and new.scale.dtype == np.float32
            assert (scale == "float") or np.array_equal(old.scale, new.scale)
            # The float array and the codes say the same.
            values = result.weight_overrides[site.weight]
            np.testing.assert_array_equal(fake_quantize(values, new), values)
    freeze(context.model, result)


def test_two_samples_and_dead_channels():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 5, 5), 4, 8))
    dead = net.rng.normal(0, 1, (6, 8, 3, 3))
    dead[2] = 0
    x = net.add("Mul", x, net.const(np.r_[np.zeros(4), np.ones(4)].reshape(1, 8, 1, 1)))
    net.output(net.add("Conv", x, net.const(dead), net.weight(6), out="y"))
    plan, context = calibrated(net, FOUR, rows=2)
    result = Gptq()(plan, context)
    frozen = freeze(context.model, result.plan)
    *_, last = (site.weight for site in plan.sites.values() if site.weight)
    assert not frozen.codes[last][2].any() and frozen.codes[last][:2].any()
    for name in frozen.codes:
        scale = np.asarray(frozen.params(name).scale)
        assert np.isfinite(scale).all() and (scale > 0).all()


def test_the_same_run_twice_gives_the_same_bytes():
    first, second = (
        Gptq()(*calibrated(BUILDERS["residual"](), FOUR)).plan
        for _ in range(2)  # each its cache
    )
    for name, codes in first.codes.items():
        assert np.array_equal(codes, second.codes[name])
        assert np.array_equal(first.params(name).scale, second.params(name).scale)


def test_it_is_a_step_of_the_library_and_recipes(digits):
    data = {
        "images": str(digits / "data" / "train"),
        "count": 64,
        "preprocess": {"color": "gray", "mean": [0.3], "std": [0.3]},
    }
    plan = qtool.quantize(
        qtool.load(digits / "digits.onnx"),
        data,
        bits={"weights": 3, "layers": {"first": 8, "last": 8}},
        ptq=[{"gptq": {"refine": 1, "bits": "below_8"}}],
    )
    verdicts = [note for note in plan.notes if "holdout" in note]
    assert len(verdicts) == 1 and verdicts[0].endswith("kept")
