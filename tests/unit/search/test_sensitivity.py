"""The scan agrees with whole runs, and goes on from finished sites."""

from dataclasses import replace

import numpy as np
import pytest
from contexts import calibrated
from models import BUILDERS

from qtool.quant.bit_widths import Bits
from qtool.report.search_schema import Sensitivity
from qtool.search.effects import Reference
from qtool.search.interactions import interactions
from qtool.search.partial_network import PartialNetwork
from qtool.search.rank_agreement import rank_agreement
from qtool.search.sensitivity import Scan


def scan(plan, context, **options):
    reference = Reference(context, context.calibration)
    whole = Scan(plan, reference, **options)
    note = whole.extent_note()
    return whole.run(), reference, note


@pytest.mark.parametrize("name", ["residual", "depthwise", "transformer_mlp", "squeeze_excite"])
def test_a_site_costs_what_a_whole_run_says(name, tmp_path):
    plan, context = calibrated(BUILDERS[name](), Bits(weights=4), rows=20, folder=tmp_path)
    rows, reference, _ = scan(plan, context)
    network = PartialNetwork(context, plan)
    assert [row.site for row in rows if row.kind == "both"] == [u.name for u in network.units]
    before = set()
    for row in rows:
        if row.kind == "cumulative":
            before.add(row.site)
            outputs = network.run(
                context, context.calibration, lambda unit: "both" if unit.name in before else None
            )
        else:
            outputs = network.run(
                context,
                context.calibration,
                lambda unit, row=row: row.kind if unit.name == row.site else None,
            )
        effect = reference.effect(outputs)
        assert row.kl == pytest.approx(effect.kl, rel=2e-2, abs=1e-9)
    whole = reference.effect(context.outputs(context.calibration, plan))
    assert rows[-1].kl == pytest.approx(whole.kl, rel=2e-2, abs=1e-9)


def test_finished_sites_are_not_measured_again(tmp_path, monkeypatch):
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=20, folder=tmp_path)
    measured = []
    original = Scan._measure

    def counted(self, walk, unit):
        if len(measured) == 2 and not measured[0].endswith("!"):
            measured[0] += "!"
            raise KeyboardInterrupt
        measured.append(unit.name)
        return original(self, walk, unit)

    monkeypatch.setattr(Scan, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        scan(plan, context)
    rows, _, note = scan(plan, context)
    names = [unit.name for unit in PartialNetwork(context, plan).units]
    assert [name.rstrip("!") for name in measured] == names  # each once
    assert "; 2 of an earlier run" in note
    fresh = replace(context, cache=replace(context.cache, fresh=True, _made=set()))
    again, _, _ = scan(plan, fresh)
    assert again == rows and len(measured) == 2 * len(names)


def test_another_plan_is_another_trial(tmp_path):
    net = BUILDERS["residual"]()
    plan, context = calibrated(net, Bits(weights=4), rows=20, folder=tmp_path)
    first, _, _ = scan(plan, context, parts=("both",), cumulative=False)
    finer, context = calibrated(net, Bits(weights=8), rows=20, folder=tmp_path)
    second, _, note = scan(finer, context, parts=("both",), cumulative=False)
    assert "earlier run" not in note
    weighted = {s.name for s in plan.sites.values() if s.weight}
    for narrow, wide in zip(first, second, strict=True):
        assert narrow.site not in weighted or narrow.kl > wide.kl


def test_a_scrambled_layer_costs_most(tmp_path):
    plan, context = calibrated(BUILDERS["residual"](), rows=20, folder=tmp_path)
    site = [s for s in plan.sites.values() if s.weight][1]
    grid = plan.qparams(site.weight)
    coarse = replace(grid, scale=(grid.scale * 100).astype(np.float32))
    plan = replace(plan, grids={**plan.grids, plan.grid_of[site.weight]: coarse})
    rows, _, _ = scan(plan, context)
    both = [row for row in rows if row.kind == "both"]
    worst = max(both, key=lambda row: row.kl)
    assert worst.site == site.name
    kinds = {row.kind: row.kl for row in rows if row.site == site.name}
    assert kinds["weights"] > 10 * kinds["activations"]


def test_interaction_is_what_two_sites_cost_beyond_their_sum(tmp_path):
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=3), rows=20, folder=tmp_path)
    rows, reference, _ = scan(plan, context)
    alone = {row.site: row.kl for row in rows if row.kind == "both"}
    pairs = interactions(Scan(plan, reference), rows, 3)
    assert len(pairs) == 3
    for row in pairs:
        assert row.interaction == pytest.approx(
            row.kl - alone[row.site] - alone[row.partner], rel=1e-3, abs=1e-6
        )
    top = sorted(alone, key=lambda name: -alone[name])[:3]
    assert {name for row in pairs for name in (row.site, row.partner)} == set(top)


def test_rank_agreement_is_kendalls_tau():
    rows = [
        Sensitivity(site=f"all{k}", kind="both", kl=kl, drop=drop, sqnr_db=-kl, fisher=-kl)
        for k, (kl, drop) in enumerate([(1, 0), (2, 1), (3, 3), (4, 2)])
    ]
    (note,) = rank_agreement(rows)
    assert "against the drops" in note
    assert "kl 0.67" in note and "sqnr_db 0.67" in note and "fisher -0.67" in note
    for distinct in (1, 2):
        drops = [row.model_copy(update={"drop": k % distinct}) for k, row in enumerate(rows)]
        (note,) = rank_agreement(drops)
        assert "against the divergences" in note and "fisher -1.00" in note
    assert rank_agreement(rows[:1]) == []
