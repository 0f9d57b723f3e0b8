"""Pruned weights are 0 after every step, at every width, in the simulation and in the file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contexts import calibrated, samples
from models import Net, cpu, run

from qtool.emitters import emit_qdq
from qtool.graph.queries import by_name
from qtool.pipeline.pruning.masks import _with_zero_levels
from qtool.pruning.magnitude import Magnitude
from qtool.pruning.masks import Pattern
from qtool.pruning.method import pruned_layers
from qtool.ptq import PTQ_STEPS
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan_archive import load_plan_archive, plan_digest, save_plan_archive
from qtool.simulation.fake_quant import Simulation
from qtool.steps.guard import NamedStep, apply_steps
from qtool.weights.grids import weight_grids
from qtool.weights.kmeans import KMeans

# Fewer iterations and epochs; absent: the defaults.
FEW = {
    "adaround": {"iterations": 20},
    "brecq": {"iterations": 20},
}
# They need BatchNorms, or cost much time; a step like them runs.
OTHERS = (
    "analytic_bias_correction",
    "batchnorm_reestimation",
    "high_bias_absorption",
    "qdrop",
    "distillation",
)
CODE_STEPS = ["adaround", "brecq", "comq", "gptq", "ridge_compensation"]


def net() -> Net:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8, name="first"))
    x = net.add("Relu", net.conv(x, 8, 8, name="middle"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.output(net.add("Gemm", x, net.weight(6, 8), net.weight(6), transB=1, out="y"))


def pruned(bits: Bits, tmp_path, pattern: Pattern | None = None):
    plan, context = calibrated(net(), bits, rows=64, folder=tmp_path)
    layers, _ = pruned_layers(context.model, {}, 0.5, pattern)
    return Magnitude()(plan, layers, context), context


def check_zeros(plan, context):
    """The masks' zeros are those of the codes, of the simulation, and of the file."""
    frozen = freeze(context.model, plan)
    simulation = Simulation(context.model, frozen)
    values = by_name(context.model.graph)
    assert len(plan.masks) == 3
    for name, mask in plan.masks.items():
        assert not frozen.codes[name][~mask].any()
        array = frozen.rounded_weight(name, values[name])
        assert not array[~mask].any() and array.any()
        observed = simulation.observe(values[name], torch.zeros(mask.shape)).numpy()
        np.testing.assert_array_equal(observed, array)
    feeds = samples(context.model, 4, seed=9)
    file = emit_qdq(context.model, frozen, cpu())
    expected = simulation(feeds)["y"].numpy()
    assert np.abs(run(file, feeds)["y"] - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("name", CODE_STEPS)
@pytest.mark.parametrize("bits", [8, 2])
def test_steps_that_choose_codes_leave_pruned_weights_at_zero(name, bits, tmp_path):
    plan, context = pruned(Bits(bits, 8), tmp_path)
    step = PTQ_STEPS[name](**FEW.get(name, {}))
    result = step(plan, context).plan
    for weight in result.codes.keys() & plan.masks.keys():  # by itself, before the guard
        assert not result.codes[weight][~plan.masks[weight]].any()
    check_zeros(result, context)


def test_all_steps_together_keep_the_pattern(tmp_path):
    plan, context = pruned(Bits(4, 8), tmp_path, Pattern(2, 4))
    names = [name for name in PTQ_STEPS if name not in OTHERS]
    steps = [NamedStep(name, PTQ_STEPS[name](**FEW.get(name, {}))) for name in names]
    result = apply_steps(steps, plan, context)
    assert any(row.kept for row in result.rows)
    check_zeros(result.plan, context)
    for mask in result.plan.masks.values():
        assert mask.mean() == 0.5


def test_gptq_makes_up_for_pruned_weights(tmp_path):
    plan, context = pruned(Bits(8, 8), tmp_path)
    assert context.loss(PTQ_STEPS["gptq"]()(plan, context).plan) < 0.6 * context.loss(plan)


def test_a_changed_pruned_weight_is_a_bug_that_freezing_finds(tmp_path):
    plan, context = pruned(Bits(8, 8), tmp_path)
    name, mask = next(iter(plan.masks.items()))
    frozen = freeze(context.model, plan)
    damaged = replace(plan, codes={name: np.where(mask, frozen.codes[name], 1).astype(np.int8)})
    with pytest.raises(AssertionError, match="pruned weights"):
        freeze(context.model, damaged)
    check_zeros(damaged.masked(), context)


def test_a_code_book_gets_a_level_of_zero(tmp_path):
    plan, context = pruned(Bits(2, 8), tmp_path)
    specs = {n: g if n not in plan.masks else g.spec for n, g in plan.grids.items()}
    plan = weight_grids(context.model, replace(plan, grids=specs, codes={}), KMeans())
    for name in plan.masks:
        levels = plan.grids[name].levels
        shifted = replace(plan.grids[name], levels=levels + (levels == 0))
        plan = replace(plan, grids={**plan.grids, name: shifted})
    result = _with_zero_levels(plan, by_name(context.model.graph))
    for name, mask in plan.masks.items():
        assert 0 in result.grids[name].levels and len(result.grids[name].levels) <= 4
        assert not result.codes[name][~mask].any()
        assert np.isin(result.codes[name], result.grids[name].levels).all()
    freeze(context.model, result)


def test_masks_are_stored_with_the_plan(tmp_path):
    plan, _ = pruned(Bits(8, 8), tmp_path)
    save_plan_archive(plan, tmp_path / "plan.zip")
    loaded, _ = load_plan_archive(tmp_path / "plan.zip")
    assert plan_digest(loaded) == plan_digest(plan) != plan_digest(replace(plan, masks={}))
    for name, mask in plan.masks.items():
        np.testing.assert_array_equal(loaded.masks[name], mask)
