"""A scan in shares: each site once, the same rows for any number of processes, errors."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from contexts import calibrated
from models import BUILDERS
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.errors import DataError, RecipeError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.folders.run_folder import run_folder
from qtool.pipeline.search.sensitivity import SensitivityOptions, run_sensitivity
from qtool.pipeline.search.spread import scan_shares
from qtool.pipeline.search.spread.cluster import Spread
from qtool.pipeline.search.spread.scan_shares import WorkerInput, equal_parts, scan_in_shares
from qtool.quant.bit_widths import Bits
from qtool.recipe.loader import load_recipe
from qtool.search.effects import Reference
from qtool.search.sensitivity import Scan
from qtool.steps.stage_cache import StageCache


@pytest.mark.slow
def test_two_processes_measure_what_one_does(digits, tmp_path):
    settings = ("calibrate.count=32", "evaluate.count=16", "bits.weights=4")
    recipe, rows = load_recipe(digits / "int8.yaml", settings), []
    for jobs in (1, 2):
        extent, options = (
            SensitivityOptions(16, worst=2),
            RunOptions(threads=1, spread=Spread(jobs)),
        )
        report = run_sensitivity(recipe, tmp_path / str(jobs), options, extent)
        rows.append(report.sensitivity)
    assert rows[0] == rows[1]


def test_finished_sites_are_in_no_share(tmp_path, monkeypatch):
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=8, folder=tmp_path)
    shares, stop_after = [], 1

    def scan():
        return Scan(plan, Reference(context, context.calibration))

    source = SimpleNamespace(common=SimpleNamespace(working=nullcontext), scan=scan)

    def here(spread, function, pending):
        for share in pending(spread.jobs):
            if len(shares) == stop_after:
                raise KeyboardInterrupt
            shares.append(share[1])
            yield function(share)

    def scanned():
        scan_in_shares([(scan(), source)], Spread(jobs=2))
        return scan().run()

    monkeypatch.setattr(scan_shares, "run_trials", here)
    with pytest.raises(KeyboardInterrupt):
        scanned()
    first, stop_after = len(shares[0]), None
    note, rows = scan().extent_note(), scanned()
    sites = [row.site for row in rows if row.kind == "both"]
    assert 0 < first < len(sites) and [name for share in shares for name in share] == sites
    assert note.endswith(f"; {first} of an earlier run")
    shares.clear()
    scanned()
    assert not shares and len(rows) == 4 * len(sites)


def test_an_error_of_another_process_is_raised_here(tmp_path, monkeypatch):
    plan, context = calibrated(BUILDERS["residual"](), rows=8, folder=tmp_path)
    scan = Scan(plan, Reference(context, context.calibration))
    monkeypatch.setattr(scan_shares, "run_trials", lambda *args: [DataError("other samples")])
    with pytest.raises(DataError, match="other samples"):
        scan_in_shares([(scan, None)], Spread(jobs=2))


def test_another_version_of_qtool_is_refused(tmp_path):
    other = StageCache(tmp_path, base=("another digest",))
    with (
        pytest.raises(RecipeError, match="another version of qtool"),
        WorkerInput(None, other, RunOptions()).working(),
    ):
        pass


def test_fresh_leaves_nothing_that_other_processes_would_read(tmp_path):
    for options, left in (
        (RunOptions(), ["grids-1", "run", "scratch", "states"]),
        (RunOptions(fresh=True), ["grids-1", "run", "scratch", "states"]),
        (RunOptions(fresh=True, spread=Spread(2)), ["run", "scratch"]),
    ):
        (tmp_path / ".stages" / "states").mkdir(parents=True, exist_ok=True)
        for name in ("grids-1", "run"):  # `run` says whose folder it is
            (tmp_path / ".stages" / name).touch()
        with run_folder(tmp_path, options) as (cache, _):
            assert sorted(path.name for path in cache.folder.iterdir()) == left


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
