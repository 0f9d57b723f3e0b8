"""The one loop of AdaRound, BRECQ and QDrop: block after block, each behind a guard, on the CPU."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from qtool.graph.queries import by_name, macs, nodes_by_name
from qtool.ptq.reconstruction.activations import Drop
from qtool.ptq.reconstruction.block_network import BlockNetwork, Learned
from qtool.ptq.reconstruction.blocks import Block, Region, find_regions
from qtool.ptq.reconstruction.learning import (
    Draw,
    Schedule,
    learn_block,
    random_order,
    within_time,
)
from qtool.ptq.reconstruction.output_weights import WEIGHTINGS, output_gradients
from qtool.ptq.reconstruction.rounding import ROUNDINGS
from qtool.ptq.reconstruction.samples import BlockSamples
from qtool.ptq.reconstruction.windows import Windows, receptive_field
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_archive import load_plan_archive, plan_digest, save_plan_archive
from qtool.report.schema import PtqStep
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageRecord
from qtool.steps.step import StepResult

T = torch.Tensor


@dataclass(frozen=True)
class Reconstruction:
    """The choices that make the loop one of its methods.

    Attributes:
        name: of the step, for progress and the report.
        whole: blocks of several layers, else one layer after the other.
        rounding: name in ROUNDINGS.
        warm: where rounding starts, 0 (float weights) to 1 (the plan's codes).
        narrow_only: the codes of weights of 8 bits and more stay.
        steps: steps of activations, scales of weights and biases learn too.
        drop: probability that an activation stays unrounded in a step.
        weighting: name in WEIGHTINGS, or none.
        samples: that are fitted to, at most.
        batch: samples of a step.
        window: positions of a block's output along an axis that an iteration reads; None: all.
        schedule: of each block.
        minutes: of all blocks together, at most; None: any.
    """

    name: str
    whole: bool
    rounding: str
    warm: float
    narrow_only: bool
    steps: bool
    drop: float
    weighting: str
    samples: int
    batch: int
    window: int | None
    schedule: Schedule
    minutes: float | None

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with the learned blocks whose error fell on ``holdout``.

        Args:
            plan: every grid is calibrated.
            context: model, samples, cache and progress.
        """
        regions = find_regions(context.model.graph, plan, self.whole)
        rows: list[PtqStep] = []
        with BlockSamples(context, self.samples, self.batch) as samples:
            run = _Run(self, context, samples, _shares(context, regions))
            for region in regions:
                for block in region.blocks:
                    plan, row = run.block(region, block, plan)
                    rows += [] if row is None else [row]
                samples.leave(region, run.simulation(plan))
            count = samples.count
        changed = sum(row.kept for row in rows)
        note = f"{changed} of {len(rows)} blocks changed, learned on {count} samples"
        if not rows:
            note = "no block has anything to learn: 8-bit codes, code books and blocks stay"
        return StepResult(plan, (note, *run.notes), {"blocks": changed}, rows=tuple(rows))


def _shares(context: Context, regions: tuple[Region, ...]) -> dict[str, float]:
    """Return each block's share of the multiplications of all blocks, which is that of the time."""
    nodes = nodes_by_name(context.model.graph)
    blocks = [block for region in regions for block in region.blocks]
    work = {b.name: 1.0 + sum(macs(nodes[site.name]) for site in b.sites) for b in blocks}
    total = sum(work.values())
    return {name: part / total for name, part in work.items()}


class _Run:
    """One pass over all blocks."""

    def __init__(
        self,
        method: Reconstruction,
        context: Context,
        samples: BlockSamples,
        shares: Mapping[str, float],
    ) -> None:
        self._method, self._context, self._samples = method, context, samples
        self._shares = shares
        self._done = 0.0
        self.notes: list[str] = []

    def simulation(self, plan: QuantPlan) -> Simulation:
        """Return the quantized network, differentiable and with constants rounded."""
        return Simulation(self._context.model, freeze(self._context.model, plan))

    def block(
        self, region: Region, block: Block, plan: QuantPlan
    ) -> tuple[QuantPlan, PtqStep | None]:
        """Return the plan with one block learned, or as it was where ``holdout`` says no better.

        Returns:
            The plan, and the block's row for the report; None where nothing can learn.
        """
        start, samples = time.perf_counter(), self._samples
        before = self.simulation(plan)
        samples.enter(region, block, before)
        old = samples.relative_error(before, samples.holdout)
        changes = self._changes(block, plan, before, old)
        self._done += self._shares[block.name]
        self._context.progress(self._method.name, round(1000 * self._done), 1000, block.name)
        if changes is None:
            return plan, None
        changed = plan.with_changes(changes)
        new = samples.relative_error(self.simulation(changed), samples.holdout)
        row = PtqStep(
            step=self._method.name,
            block=block.name,
            before=round(old, 8),
            after=round(new, 8),
            kept=new < old,
            seconds=round(time.perf_counter() - start, 3),
        )
        return (changed if new < old else plan), row

    def _changes(
        self, block: Block, plan: QuantPlan, before: Simulation, error: float
    ) -> QuantPlan | None:
        """Return what a block learns, of an earlier run where one learned it; None for nothing.

        Scales learn at a rate that is relative to the root of the block's relative error: changes
        of a scale by more than that share make the error larger, whichever way they go.
        """
        method, context, samples = self._method, self._context, self._samples
        make = partial(self._network, plan, block)
        if not make().learns:
            return None

        def learned() -> QuantPlan:
            draw = self._draw(block, before)
            rate = method.schedule.scale_lr * min(1.0, math.sqrt(error))
            schedule = replace(method.schedule, scale_lr=rate)
            if method.minutes is not None:
                seconds = 60 * method.minutes * self._shares[block.name]
                schedule = within_time(make, draw, schedule, seconds)
            network, order = make(), random_order(samples.fit, context.seed)
            learn_block(network, draw, order, schedule)
            if not network.is_finite:
                return QuantPlan().note("diverged")
            return network.changes().note(f"{schedule.iterations} iterations")

        parts = (*context.cache_parts, repr(method), plan_digest(plan), block.name)
        record, name = StageRecord(), f"{method.name}-block"
        changes = context.cache.cached(record, name, parts, learned, save_plan_archive, _load)
        context.cache.remove_with_whole(name, parts)
        self.notes += record.notes
        return changes

    def _network(self, plan: QuantPlan, block: Block) -> BlockNetwork:
        method, context = self._method, self._context
        rounding = ROUNDINGS[method.rounding]
        learned = Learned(
            weight=lambda exact, codes, params: rounding(exact, codes, params, method.warm),
            steps=method.steps,
            drop=Drop(method.drop, context.seed),
            # Scales that keep pairs of 8-bit products in int16 count on the nearest codes.
            narrow_only=method.narrow_only or context.target.int16_pairs,
        )
        return BlockNetwork(context.model, plan, block, learned)

    def _draw(self, block: Block, simulation: Simulation) -> Draw:
        """Return what draws the batches that are learned from."""
        field = receptive_field(by_name(self._context.model.graph), block)
        windows = Windows(field, self._method.window, self._context.seed)
        weight = self._weight(simulation)
        return lambda k: windows(self._samples.batch(k), weight(k))

    def _weight(self, simulation: Simulation) -> Callable[[int], T | None]:
        """Return the weights of output elements by batch, with mean 1 over all batches."""
        method, context, samples = self._method, self._context, self._samples
        weighting = WEIGHTINGS.get(method.weighting)
        if weighting is None or samples.at_output:
            return lambda k: None
        gradients = output_gradients(
            Executor(context.model),
            context.first_output,
            simulation,
            samples.each(samples.fit),
        )
        return samples.weights(weighting(gradients))


def _load(path: Path) -> QuantPlan:
    return load_plan_archive(path)[0]
