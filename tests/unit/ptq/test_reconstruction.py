"""The loop: gradients, never worse on holdout samples, the same bytes again, resumed by block."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import BUILDERS, auxiliary_output, cpu, run

from qtool.emitters import emit_qdq
from qtool.ptq import PTQ_STEPS, AdaRound, Brecq, Gptq, QDrop
from qtool.ptq.reconstruction import loop
from qtool.ptq.reconstruction.activations import Drop, LearnedActivation
from qtool.ptq.reconstruction.block_network import BlockNetwork, Learned
from qtool.ptq.reconstruction.blocks import find_regions
from qtool.ptq.reconstruction.learning import block_loss, random_order, rounded_down
from qtool.ptq.reconstruction.rounding import (
    SoftRounding,
    StraightThroughRounding,
    rectified_sigmoid,
)
from qtool.ptq.reconstruction.samples import BlockSamples, unrounded_output
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan_archive import plan_digest
from qtool.simulation.fake_quant import Simulation
from qtool.steps.guard import NamedStep, apply_steps

FOUR = Bits(weights=4, activations=4)
SHORT = {"iterations": 20, "batch": 16}


def setup(name, tmp_path, rows=64):
    return calibrated(BUILDERS[name](), FOUR, rows=rows, folder=tmp_path)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("step", [Brecq(**SHORT), QDrop(**SHORT, rounding="soft")])
def test_blocks_are_never_worse_on_holdout_and_the_file_computes_them(name, step, tmp_path):
    plan, context = setup(name, tmp_path)
    result = step(plan, context)
    assert result.rows and len({row.block for row in result.rows}) == len(result.rows)
    for row in result.rows:
        assert row.kept == (row.after < row.before)
    frozen = freeze(context.model, result.plan)
    feeds = next(context.feeds(context.holdout, 4))[0]
    want = Simulation(context.model, frozen)(feeds)
    for output, array in run(emit_qdq(context.model, frozen, cpu()), feeds).items():
        reference = want[output].numpy()
        # One code of the last layer's input may differ where float32 sums end half-way.
        assert np.abs(array - reference).max() <= 0.05 * np.abs(reference).max()


def test_learning_lowers_the_distance_of_the_network(tmp_path):
    plan, context = setup("inverted_bottleneck", tmp_path)
    assert context.loss(Brecq(**SHORT)(plan, context).plan) < 0.9 * context.loss(plan)


def test_a_block_that_gets_worse_is_left_as_it_was(tmp_path):
    plan, context = setup("residual", tmp_path)
    result = Brecq(iterations=5, lr=50.0, scale_lr=3.0)(plan, context)
    assert result.metrics["blocks"] == 0 and not any(row.kept for row in result.rows)
    assert plan_digest(result.plan) == plan_digest(plan)


def test_a_block_whose_learning_diverges_is_left_as_it_was(tmp_path):
    plan, context = setup("residual", tmp_path)
    result = Brecq(iterations=5, lr=1e30, scale_lr=1e6)(plan, context)
    assert result.rows and all(row.before == row.after for row in result.rows)
    assert plan_digest(result.plan) == plan_digest(plan)


def test_blocks_are_learned_on_the_cpu(tmp_path):
    plan, context = setup("residual", tmp_path / "a")
    other = replace(setup("residual", tmp_path / "b")[1], device="cuda")
    step = Brecq(**SHORT, weighting="fisher")
    assert plan_digest(step(plan, other).plan) == plan_digest(step(plan, context).plan)


def test_the_step_of_an_entry_that_others_read_is_fixed():
    plan, context = calibrated(auxiliary_output(), FOUR)
    learned = Learned(lambda *parts: SoftRounding(*parts, 0.5), True, Drop(0.0, 0), True)
    regions = find_regions(context.model.graph, plan, whole=False)
    learns = {}
    for block in (block for region in regions for block in region.blocks):
        network = BlockNetwork(context.model, plan, block, learned)
        grid = plan.grid_of[block.sites[0].inputs[0]]
        learns[block.name] = network.activations[grid].log_ratio.requires_grad
    assert learns == {"Conv0": True, "Conv2": False, "Conv3": False, "Conv5": True}


def test_adaround_rounds_to_neighbours_and_changes_nothing_else(tmp_path):
    plan, context = setup("residual", tmp_path)
    result = AdaRound(iterations=150, lr=0.1, regularization=1e-4)(plan, context)
    assert result.metrics["blocks"] > 0
    before = freeze(context.model, plan)
    changed = 0
    for site in plan.sites.values():
        if site.weight in result.plan.codes:
            difference = np.abs(
                result.plan.codes[site.weight].astype(int) - before.codes[site.weight]
            )
            assert difference.max() <= 1
            changed += int((difference > 0).sum())
    assert changed > 0
    assert set(result.plan.weight_overrides) == set(result.plan.codes)
    for name, grid in plan.grids.items():
        if hasattr(grid, "scale"):
            np.testing.assert_array_equal(result.plan.grids[name].scale, grid.scale)


@pytest.mark.parametrize(("bits", "blocks"), [("all", True), ("below_8", False)])
def test_adaround_of_8_bits_where_it_is_wanted(bits, blocks, tmp_path):
    wide = Bits(8, 8, granularity="tensor")
    plan, context = calibrated(BUILDERS["residual"](), wide, rows=64, folder=tmp_path)
    result = AdaRound(iterations=150, lr=0.1, regularization=1e-4, bits=bits)(plan, context)
    assert bool(result.metrics["blocks"]) == blocks == bool(result.plan.codes)
    assert blocks or "no block has anything to learn" in result.notes[0]


def test_it_starts_from_the_codes_of_the_step_before(tmp_path):
    plan, context = setup("residual", tmp_path)
    rounded = Gptq()(plan, context).plan
    result = AdaRound(iterations=1, lr=1e-9, warm_start=0.6)(rounded, context)
    assert result.metrics["blocks"] == 0
    for row in result.rows:
        assert row.before == row.after


def test_qdrop_that_drops_nothing_is_brecq(tmp_path):
    plan, context = setup("residual", tmp_path)
    digests = [
        plan_digest(step(plan, context).plan) for step in (QDrop(drop=0, **SHORT), Brecq(**SHORT))
    ]
    assert digests[0] == digests[1] != plan_digest(plan)


@pytest.mark.parametrize("step", [QDrop(**SHORT), Brecq(**SHORT, weighting="fisher")])
def test_the_same_bytes_again(step, tmp_path):
    plan, context = setup("residual", tmp_path / "a")
    _, again = setup("residual", tmp_path / "b")
    assert plan_digest(step(plan, context).plan) == plan_digest(step(plan, again).plan)
    # Every method has results of its own.
    assert plan_digest(replace(step, scale_lr=0.03)(plan, context).plan) != plan_digest(
        step(plan, context).plan
    )


def test_finished_blocks_are_not_learned_again(tmp_path, monkeypatch):
    plan, context = setup("residual", tmp_path)
    learned = []
    original = loop.learn_block

    def stop_at_third(network, *rest):
        if len(learned) == 2:
            raise KeyboardInterrupt
        learned.append(network)
        original(network, *rest)

    monkeypatch.setattr(loop, "learn_block", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        Brecq(**SHORT)(plan, context)
    learned.clear()
    result = Brecq(**SHORT)(plan, context)
    assert len(learned) == 1 == len(result.rows) - 2
    _, other = setup("residual", tmp_path / "whole")
    monkeypatch.setattr(loop, "learn_block", original)
    assert plan_digest(Brecq(**SHORT)(plan, other).plan) == plan_digest(result.plan)


@pytest.mark.parametrize(
    "step",
    [
        AdaRound(iterations=5),
        Brecq(**SHORT, weighting="fisher"),
        Brecq(**SHORT, weighting="least_squares"),
    ],
)
def test_blocks_in_front_of_another_output_are_learned_too(step, tmp_path):
    plan, context = calibrated(auxiliary_output(), FOUR, folder=tmp_path)
    result = step(plan, context)
    assert [row.block for row in result.rows] == ["Conv0", "Conv2", "Conv3", "Conv5"]
    assert np.isfinite([row.after for row in result.rows]).all()


def test_files_of_finished_blocks_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("qtool.steps.value_store.MEMORY_LIMIT", 0)
    plan, context = setup("residual", tmp_path)
    simulation = Simulation(context.model, freeze(context.model, plan))
    counts = []
    with BlockSamples(context, 48, 16) as samples:
        folder = Path(samples._folder.name)
        for region in find_regions(context.model.graph, plan):
            for block in region.blocks:
                samples.enter(region, block, simulation)
                samples.weights(batch.target for batch in samples.each(samples.fit))
            samples.leave(region, simulation)
            counts.append(len(list(folder.rglob("*.bin"))))
    # The first region has no entry to store.
    assert 0 < counts[0] < counts[1] == counts[2]


def test_the_report_has_the_rows_also_of_a_cached_step(tmp_path):
    plan, context = setup("residual", tmp_path)
    step = NamedStep("brecq", Brecq(**SHORT), "brecq")
    first, second = (apply_steps((step,), plan, context) for _ in range(2))
    assert [row.block for row in first.rows] == [row.block for row in second.rows]
    assert len(first.rows) == 4 and first.rows[-1].block is None
    assert first.rows[:-1] == second.rows[:-1]


def test_time_limits_iterations(tmp_path, monkeypatch):
    plan, context = setup("residual", tmp_path)
    seen = []
    monkeypatch.setattr(loop, "learn_block", lambda *arguments: seen.append(arguments[3]))
    Brecq(iterations=1000, minutes=1e-5)(plan, context)
    assert seen and all(schedule.iterations == 1 for schedule in seen)
    seen.clear()
    Brecq(iterations=7, minutes=60)(plan, context)
    assert all(schedule.iterations == 7 for schedule in seen)
    assert [rounded_down(x) for x in (0.2, 1, 3.9, 4, 6.5, 100)] == [1, 1, 3, 4, 6, 96]


@contextmanager
def entered(tmp_path, number):
    """Enter a block of the residual network; yield its network, its ends, and the simulation."""
    plan, context = setup("residual", tmp_path)
    regions = find_regions(context.model.graph, plan)
    simulation = Simulation(context.model, freeze(context.model, plan))
    block = regions[number].blocks[0]

    def network(drop=0.0, rounding=StraightThroughRounding, warm=1.0):
        def weight(exact, codes, params):
            return rounding(exact, codes, params, warm)

        learned = Learned(weight, True, Drop(drop, 0), True)
        return BlockNetwork(context.model, plan, block, learned)

    with BlockSamples(context, 48, 16) as samples:
        for region in regions[:number]:
            samples.leave(region, simulation)
        samples.enter(regions[number], block, simulation)
        yield network, samples, simulation


@pytest.fixture
def residual_block(tmp_path):
    with entered(tmp_path, 1) as parts:
        yield parts


def test_before_learning_the_block_computes_what_the_simulation_does(residual_block):
    network, samples, simulation = residual_block
    for batch in samples.each(samples.fit):
        feeds = batch.feeds(batch.entry_quantized)
        with torch.no_grad():
            for module in (network(), network(rounding=SoftRounding)):
                difference = module(feeds) - unrounded_output(simulation, feeds, batch.block.exit)
                # A code differs where float32 sums end half-way between two.
                assert (difference.abs() > 1e-4).float().mean() < 1e-3
    assert len(samples.fit) == 3 and len(samples.holdout) == 1


def test_gradients_are_those_of_finite_differences(tmp_path):
    # A last layer: nothing behind its weights is rounded.
    with entered(tmp_path, 2) as (network, samples, _):
        module, batch = network(rounding=SoftRounding, warm=0.3), samples.batch(0)
        (weight,) = module.roundings()
        block_loss(module, batch).backward()
        inside = (rectified_sigmoid(weight.v.detach()) - 0.5).abs() < 0.4
        slopes, step = torch.where(inside, weight.v.grad, 0), 1e-2
        at = np.unravel_index(int(slopes.abs().argmax()), slopes.shape)
        losses = []
        with torch.no_grad():
            for change in (step, -2 * step):
                weight.v[at] += change
                losses.append(float(block_loss(module, batch)))
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(slopes[at]), rel=0.02)


def test_dropped_elements_are_those_of_the_float_network(residual_block):
    network, samples, _ = residual_block
    batch = samples.batch(0)
    dropped = Drop(0.5, 0)(batch.entry_quantized, batch.entry_float)
    is_float = dropped == batch.entry_float
    assert bool((is_float | (dropped == batch.entry_quantized)).all())
    with torch.no_grad():
        losses = [float(block_loss(network(drop), batch)) for drop in (0.0, 0.5, 0.99)]
    assert losses[0] > losses[1] > losses[2] > 0


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5])
def test_masks(probability):
    zeros, ones = torch.zeros(100_003), torch.ones(100_003)
    drop = Drop(probability, 1)
    first, second = drop(zeros, ones), drop(zeros, ones)
    assert float(first.mean()) == pytest.approx(probability, abs=0.01)
    assert bool((first != second).any()) == (probability > 0)
    assert torch.equal(Drop(probability, 1)(zeros, ones), first)


def test_the_step_of_an_activation_learns_its_logarithm(tmp_path):
    plan, _ = setup("residual", tmp_path)
    grid = next(g for n, g in plan.grids.items() if g.spec.bits == 4 and not g.spec.signed)
    module = LearnedActivation(grid, Drop(0.0, 0), learns=True)
    scale = float(grid.scale)
    module(torch.tensor([0.0, scale * 100])).sum().backward()
    largest = (15 - int(grid.zero_point)) * scale
    assert float(module.log_ratio.grad) == pytest.approx(largest, rel=1e-5)
    with torch.no_grad():
        module.log_ratio += np.log(2)
    assert float(module.freeze().scale) == pytest.approx(2 * scale, rel=1e-6)


def test_batches_come_in_random_order_each_once_an_epoch():
    order = random_order(range(5), seed=3)
    epochs = [[next(order) for _ in range(5)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_progress_reaches_the_end_once(tmp_path):
    plan, context = setup("residual", tmp_path)
    seen = []
    context = replace(context, progress=lambda name, done, total, note: seen.append((done, total)))
    Brecq(**SHORT)(plan, context)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("entry", [Brecq, QDrop])
def test_networks_without_narrow_activations_can_be_left_alone(entry, tmp_path):
    step = entry(**SHORT, activations="below_8")
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), folder=tmp_path)
    result = step(plan, context)
    assert result.plan is plan and not result.rows and "nothing changed" in result.notes[0]
    assert step(*setup("residual", tmp_path)).rows


def test_entries():
    assert {"adaround", "brecq", "qdrop"} <= PTQ_STEPS.keys()
