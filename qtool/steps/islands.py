"""Leave op kinds in float where the network's outputs gain much by it: ``placement: auto``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qtool.annotation.placement import computes_without_weights
from qtool.calibration.collect import choose_grids
from qtool.calibration.statistics import Calibrator, Stats
from qtool.data import Dataset
from qtool.graph.compared_output import compared_values
from qtool.graph.output_groups import channel_groups
from qtool.graph.queries import macs
from qtool.metrics.fidelity import finite_powers
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams
from qtool.steps.context import Context

# Above this signal-to-noise ratio of the outputs, the rounding of int8 is not noticed.
ENOUGH_DB = 40.0

# A kind returns to integers where the outputs lose less than this share of the required gain.
RETURN_SHARE = 1 / 3

# Multiply-accumulates of all samples of one comparison, and limits of their number.
MACS = 2_000_000_000
FEWEST, MOST = 8, 32

PREFIX = "placement: "
BIAS_BITS = 32

Remake = Callable[[QuantPlan, Mapping[str, str]], QuantPlan | None]


def choose_islands(context: Context, plan: QuantPlan, remake: Remake) -> QuantPlan:
    """Return the plan, with op kinds in float where the outputs gain the target's minimum.

    All kinds of ops without weights are made float. Where that gains less than
    ``target.island_gain_db``, the plan stays. Else one kind after the other returns to integers if
    the outputs hardly lose by it; what is left are the islands. The gain is that of
    10 log10(signal / noise), noise relative to each output's signal, on held-out samples.

    Args:
        context: its placement and target decide whether anything is compared.
        plan: every grid is calibrated.
        remake: returns a plan with the named nodes in float, its grids calibrated; None where the
            statistics do not suffice.
    """
    required = context.target.island_gain_db
    kinds = _kinds(context, plan)
    if (
        context.placement != "auto"
        or required is None
        or not kinds
        or context.calibration.count < 2
    ):
        return plan
    search = _Search(context, plan, remake, kinds)
    before = search.db(plan)
    if before >= ENOUGH_DB:
        return plan.note(
            f"{PREFIX}auto: the outputs keep {before:.1f} dB with every op kind in integers "
            f"({search.samples.count} held-out samples)"
        )
    chosen, after = search.chosen(before, required)
    if not chosen:
        return plan.note(
            f"{PREFIX}auto: all op kinds stay integer: {', '.join(kinds)} in float would gain "
            f"{after - before:.1f} dB on {before:.1f} dB of the outputs, less than {required:g} "
            f"({search.samples.count} held-out samples)"
        )
    listed = ", ".join(f"{len(kinds[kind])} {kind}" for kind in chosen)
    gain = f"{before:.1f} -> {after:.1f} dB"
    result = search.plan_of(chosen, f"{PREFIX}in float the outputs gain {gain}")
    if result is None:
        raise AssertionError("a plan that was compared cannot be made again")
    return result.note(
        f"{PREFIX}auto: {listed} stay float: outputs {gain} ({search.samples.count} held-out "
        "samples)"
    )


def island_reasons(plan: QuantPlan) -> dict[str, str]:
    """Return the nodes that a measured placement left float in an earlier plan, with the reason."""
    reasons = plan.float_nodes.items()
    return {name: why for name, why in reasons if why.startswith(f"{PREFIX}in float")}


def with_grids_of(
    base: QuantPlan, plan: QuantPlan, stats: Mapping[str, Stats], calibrator: Calibrator
) -> QuantPlan | None:
    """Return a plan with the grids of another one, and new ones where other values share them.

    Args:
        base: every grid is calibrated.
        plan: annotated, with more nodes in float.
        stats: value name -> statistics of the calibration pass.
        calibrator: computes the grids that ``base`` does not have.

    Returns:
        The plan, or None where a value was not observed.
    """
    members = {grid: set(values) for grid, values in base.members().items()}
    grids = dict(plan.grids)
    for grid, values in plan.members().items():
        source = base.grid_of.get(values[0], "")
        # Codes that are moved have the statistics of one value only.
        observed = members.get(source, set()) & stats.keys()
        same = members.get(source, set()).issuperset(values)
        if same and (len(observed) < 2 or observed.issubset(values)):
            grids[grid] = base.grids[source]
    plan = replace(plan, grids=grids, codes=base.codes, log=base.log)
    used = {name: part for name, part in stats.items() if name in plan.grid_of}
    plan = choose_grids(plan, used, calibrator)
    # The grids of biases follow from those of inputs and weights when the plan is frozen.
    missing = [grid for grid in plan.grids.values() if not isinstance(grid, QuantParams)]
    return plan if all(spec.bits == BIAS_BITS for spec in missing) else None


def _kinds(context: Context, plan: QuantPlan) -> dict[str, list[str]]:
    """Map each op kind without weights to its integer nodes, in graph order."""
    kinds: dict[str, list[str]] = {}
    for site in plan.sites.values():
        if computes_without_weights(context.target.ops[site.op]):
            kinds.setdefault(site.op, []).append(site.name)
    return kinds


@dataclass(frozen=True)
class _Search:
    """The comparison of plans by all outputs on a few held-out samples."""

    context: Context
    plan: QuantPlan
    remake: Remake
    kinds: Mapping[str, list[str]]

    @cached_property
    def samples(self) -> Dataset:
        """Held-out samples, as many as ``MACS`` allows."""
        each = sum(macs(node) for node in self.context.model.graph) or 1
        count = int(np.clip(MACS // each, FEWEST, MOST))
        holdout = self.context.holdout
        return holdout.take(range(min(count, holdout.count)))

    @cached_property
    def reference(self) -> list[dict[str, np.ndarray]]:
        """The compared values of the float network, batch by batch."""
        from qtool.runtime.executor import Executor

        return self._outputs(Executor(self.context.model, self.context.device))

    @cached_property
    def parts(self) -> list[tuple[str, tuple[slice, ...]]]:
        """The compared values, or the quantities that they carry, as (name, index)."""
        groups = channel_groups(self.context.model)
        parts: list[tuple[str, tuple[slice, ...]]] = []
        for name in self.reference[0]:
            own = [group for group in groups if group.output == name]
            parts += [(name, (*(slice(None),) * g.axis, slice(g.start, g.stop))) for g in own] or [
                (name, ())
            ]
        return parts

    def db(self, plan: QuantPlan) -> float:
        """Return the signal-to-noise ratio of all parts, the mean of noise / signal, in dB."""
        outputs = self._outputs(self.context.simulate(plan))
        ratios = []
        for name, index in self.parts:
            pairs = zip(self.reference, outputs, strict=True)
            powers = [finite_powers(ref[name][index], out[name][index]) for ref, out in pairs]
            signal, noise = (sum(column) for column in zip(*powers, strict=True))
            ratios.append(noise / signal if signal > 0 else 0.0)
        return float(-10 * np.log10(max(float(np.mean(ratios)), 1e-12))) if ratios else np.inf

    def chosen(self, before: float, required: float) -> tuple[list[str], float]:
        """Return the kinds that stay float, and the dB with them; with all where none do.

        Args:
            before: dB with every kind in integers.
            required: gain in dB.
        """
        chosen = list(self.kinds)
        after = self._with(chosen)
        if after < before + required:
            return [], max(after, before)
        for kind in sorted(self.kinds, key=lambda kind: (len(self.kinds[kind]), kind)):
            fewer = [other for other in chosen if other != kind]
            db = self._with(fewer) if fewer else before
            if db >= after - RETURN_SHARE * required and db >= before + required:
                chosen, after = fewer, db
        return chosen, after

    def _with(self, kinds: list[str]) -> float:
        plan = self.plan_of(kinds, PREFIX)
        return -np.inf if plan is None else self.db(plan)

    def plan_of(self, kinds: list[str], reason: str) -> QuantPlan | None:
        """Return the plan with the nodes of some kinds in float."""
        nodes = [name for kind in kinds for name in self.kinds[kind]]
        return self.remake(self.plan, dict.fromkeys(nodes, reason))

    def _outputs(self, run: Callable[..., Mapping[str, object]]) -> list[dict[str, np.ndarray]]:
        """Return the compared values of a network, batch by batch."""
        import torch

        names, batches = list(compared_values(self.context.model)), []
        with torch.inference_mode():
            for feeds, _ in self.context.feeds(self.samples):
                tensors = run(feeds, outputs=names) if names else {}
                batches.append(
                    {
                        name: tensor.float().cpu().numpy()
                        for name, tensor in tensors.items()
                        if isinstance(tensor, torch.Tensor)
                    }
                )
        return batches
