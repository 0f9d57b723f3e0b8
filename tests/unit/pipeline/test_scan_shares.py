"""A scan in shares: each site once, the same rows for any number of processes, errors."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from contexts import calibrated
from models import BUILDERS
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.errors import DataError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.search import scan_shares
from qtool.pipeline.search.cluster import Spread
from qtool.pipeline.search.scan_shares import equal_parts, scan_in_shares
from qtool.pipeline.search.sensitivity import SensitivityOptions, run_sensitivity
from qtool.quant.bit_widths import Bits
from qtool.recipe.loader import load_recipe
from qtool.search.effects import Reference
from qtool.search.sensitivity import Scan
from qtool.steps.stage_cache import StageRecord


@pytest.mark.slow
def test_two_processes_measure_what_one_does(digits, tmp_path):
    settings = ("calibrate.count=32", "evaluate.count=16", "bits.weights=4")
    recipe, rows = load_recipe(digits / "int8.yaml", settings), []
    for jobs in (1, 2):
        extent = SensitivityOptions(samples=16, worst=2, spread=Spread(jobs))
        report = run_sensitivity(recipe, tmp_path / str(jobs), RunOptions(threads=1), extent)
        rows.append(report.sensitivity)
    assert rows[0] == rows[1]


def test_finished_sites_are_in_no_share(tmp_path, monkeypatch):
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=8, folder=tmp_path)
    job = SimpleNamespace(plan=tmp_path / "plan.zip")
    shares, stop_after = [], 1

    def here(spread, function, pending, job):
        for sites in pending(spread.jobs):
            if len(shares) == stop_after:
                raise KeyboardInterrupt
            shares.append(sites)
            Scan(plan, Reference(context, context.calibration)).run(StageRecord(), sites)
            yield None

    def scanned(fresh=False):
        own = replace(context, cache=replace(context.cache, fresh=fresh, _made=set()))
        record = StageRecord()
        scan = Scan(plan, Reference(own, own.calibration))
        return scan_in_shares(scan, job, Spread(jobs=2), record), record.notes[0]

    monkeypatch.setattr(scan_shares, "run_trials", here)
    with pytest.raises(KeyboardInterrupt):
        scanned()
    first, stop_after = len(shares[0]), None
    rows, note = scanned()
    sites = [row.site for row in rows if row.kind == "both"]
    assert 0 < first < len(sites) and [name for share in shares for name in share] == sites
    assert note.endswith(f"; {first} of an earlier run")
    shares.clear()
    assert scanned(fresh=True)[0] == rows and sum(map(len, shares)) == len(sites)
    monkeypatch.setattr(scan_shares, "run_trials", lambda *args: [DataError("other samples")])
    with pytest.raises(DataError, match="other samples"):
        scanned()


def test_parts_follow_each_other_and_cost_about_the_same():
    costs = list(range(20, 0, -1))
    parts = equal_parts(costs, 4)
    assert [k for part in parts for k in part] == list(range(20))
    assert all(40 <= sum(costs[k] for k in part) <= 65 for part in parts)
    assert equal_parts([5, 4, 3], 8) == [[0], [1], [2]] and equal_parts([], 4) == []


def test_a_wrong_address_is_refused(digits, tmp_path):
    args = ["sensitivity", str(digits / "int8.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*args, "--cluster", "dusk://host:1", "--quiet"])
    assert result.exit_code == 2 and 'did you mean "dask"' in result.output
