"""A search in several processes: the same choice, each trial once, refusals; estimates once."""

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from contexts import calibrated
from models import BUILDERS, Net
from typer.testing import CliRunner

import qtool
from qtool.cli.main import app
from qtool.errors import RecipeError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.processes.worker import AssistingProcess
from qtool.pipeline.run import run_ptq
from qtool.pipeline.search import bit_search, layer_costs, sensitivity
from qtool.pipeline.search.climb import Climb
from qtool.pipeline.search.resolve import resolve_search
from qtool.pipeline.search.sensitivity import SensitivityOptions, measure, run_sensitivity
from qtool.pipeline.search.spread import ahead, scan_shares
from qtool.pipeline.search.spread.cluster import Spread, release
from qtool.pipeline.search.trial import TrialRunner
from qtool.quant.bit_widths import Bits
from qtool.recipe.loader import recipe_from_keywords
from qtool.search import gradients
from qtool.search.auto import Auto, Deadline, OutOfTimeError
from qtool.search.effects import Reference
from qtool.search.partial_network import PartialNetwork
from qtool.search.sensitivity import Scan
from qtool.steps.stage_cache import StageCache, StageRecord

BUDGET = {"weights": 4, "budget": {"weights": "17%", "among": [4, 6, 8]}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small classifier and its samples."""
    folder = tmp_path_factory.mktemp("net")
    net = Net(opset=21)
    x = net.input("x", "N", 3, 6, 6)
    x = net.add("Relu", net.conv(x, 3, 8))
    x = net.add("Relu", net.conv(x, 8, 8))
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", net.conv(x, 8, 8))))
    net.output(net.add("Gemm", x, net.weight(3, 8), net.weight(3), transB=1, out="y"))
    onnx.save(net.proto(), folder / "net.onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (64, 3, 6, 6)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, y=rng.integers(0, 3, len(x)))
    (folder / "r.yaml").write_text("model: net.onnx\ncalibrate: {arrays: x.npz}\n")
    return folder


def recipe_of(files, bits, ptq=()):
    words = {"model": "net.onnx", "calibrate": {"arrays": "x.npz"}, "ptq": list(ptq)}
    return recipe_from_keywords({**words, "bits": bits}, "test", files, files=True)


def searched(recipe, folder, jobs=1):
    """Search as `qtool ptq` does; return what was chosen and tried, without times."""
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    options = RunOptions(threads=1, spread=Spread(jobs))
    chosen, part = resolve_search(recipe, StageCache(folder), options, folder / "scratch")
    points = json.loads(part.model_dump_json(exclude={"rungs"}))
    for point in [points["chosen"], *points["front"]]:
        assert point.pop("ms") > 0
    return chosen.dump(), points


class Processes:
    """Stands in for other processes: what they read is pickled; counts who does the work."""

    def __init__(self, monkeypatch):
        self.is_other, self.stop_after = False, None
        self.trials, self.sites = [], []
        for module in (scan_shares, ahead):
            monkeypatch.setattr(module, "run_trials", self.run)
        monkeypatch.setattr(TrialRunner, "_measure", self.counted(TrialRunner._measure))
        original = Scan._measure
        monkeypatch.setattr(
            Scan,
            "_measure",
            lambda scan, *more: self.sites.append(self.is_other) or original(scan, *more),
        )

    def counted(self, original):
        def counted(runner, recipe):
            if len(self.trials) == self.stop_after:
                raise KeyboardInterrupt
            self.trials.append((recipe.bits.model_dump_json(), self.is_other))
            return original(runner, recipe)

        return counted

    def run(self, spread, function, pending, *more):
        for item in pending(spread.jobs):
            self.is_other = True
            try:
                yield function(*pickle.loads(pickle.dumps((item, *more))))
            finally:
                self.is_other = False


@pytest.fixture
def processes(monkeypatch):
    timed = SimpleNamespace(milliseconds={"kernel": 0.5})
    monkeypatch.setattr(TrialRunner, "profiled", lambda *args: [timed])
    monkeypatch.setattr(layer_costs, "SCANNED_MACS", 0)
    monkeypatch.setattr(bit_search, "FRONT_POINTS", 3)
    yield Processes(monkeypatch)
    release()


def test_a_search_in_several_processes_goes_on_after_a_kill_and_chooses_the_same(
    files, tmp_path, processes
):
    recipe = recipe_of(files, BUDGET)
    alone = searched(recipe, tmp_path / "alone")
    assert not any(other for _, other in processes.trials) and not any(processes.sites)
    count, sites = len(processes.trials), len(processes.sites)
    processes.stop_after = count + 1
    with pytest.raises(KeyboardInterrupt):
        searched(recipe, tmp_path / "several", jobs=2)
    processes.stop_after = None
    assert searched(recipe, tmp_path / "several", jobs=2) == alone
    assert processes.sites[sites:] == [True] * sites
    several = processes.trials[count:]
    assert len(several) == len({bits for bits, _ in several}) == count > 2
    assert [other for _, other in several] == [True] * count


def test_max_drop_tries_the_front_in_other_processes(files, tmp_path, processes):
    recipe = recipe_of(files, {"weights": 4, "budget": {"max_drop": 50, "among": [4, 6, 8]}})
    alone = searched(recipe, tmp_path / "alone")
    processes.trials.clear()
    assert searched(recipe, tmp_path / "several", jobs=2) == alone
    assert any(other for _, other in processes.trials)


def test_a_process_reads_model_and_data_once_for_all_its_shares(
    files, tmp_path, processes, monkeypatch
):
    recipe, extent, reads, shares = recipe_of(files, {"weights": 4}), SensitivityOptions(8), [], []
    alone = run_sensitivity(recipe, tmp_path / "alone", RunOptions(threads=1), extent).sensitivity
    monkeypatch.setattr(
        scan_shares,
        "AssistingProcess",
        lambda *more: reads.append(more) or AssistingProcess(*more),
    )
    run = Scan.run
    monkeypatch.setattr(
        Scan, "run", lambda scan, sites=None: shares.append(sites) or run(scan, sites)
    )
    options = RunOptions(threads=1, spread=Spread(2))
    report = run_sensitivity(recipe, tmp_path / "several", options, extent)
    assert report.sensitivity == alone and len(reads) == 1
    assert len([sites for sites in shares if sites is not None]) > 2


def climb(files, tmp_path, deadline):
    recipe = recipe_of(files, {"weights": 8})
    options = RunOptions(threads=1, progress=deadline, spread=Spread(2))
    runner = TrialRunner.of(recipe, StageCache(tmp_path), options, tmp_path)
    return Climb(runner, Auto(), StageRecord(), deadline)


def test_the_ranking_of_auto_is_measured_in_other_processes(files, tmp_path, processes):
    search = climb(files, tmp_path, Deadline())
    base = search.runner.base.model_copy(update={"ptq": ()})
    search._take(SimpleNamespace(recipe=base, seconds=0.0))
    assert len(search._ranked(base)) == 3  # of four, one stays quantized
    assert len(processes.sites) >= 4 and all(processes.sites)


def test_a_scan_in_other_processes_ends_with_the_time_of_the_search(files, tmp_path, processes):
    deadline = Deadline()
    search = climb(files, tmp_path, deadline)
    base = search.runner.base.model_copy(update={"ptq": ()})
    plan, context = search.runner.quantized(base)
    scan = search.runner.scan(plan, context, 8)
    scan.pending()
    deadline.until = 0.0
    with pytest.raises(OutOfTimeError):
        ahead.scan_ahead(search.runner, base, [scan])
    assert len(processes.sites) <= 1


@pytest.mark.slow
def test_two_processes_choose_what_one_does(files, tmp_path):
    recipe, shas = recipe_of(files, BUDGET, ["gptq"]), []
    for jobs in (1, 2):
        report = run_ptq(recipe, tmp_path / str(jobs), RunOptions(threads=1, spread=Spread(jobs)))
        points = [(p.name, p.kl, p.bytes) for p in report.search.front]
        shas.append((report.output.sha256, report.search.chosen.name, points))
    assert shas[0] == shas[1]


REFUSED = [
    (["--jobs", "2"], "neither bits.budget nor ptq: auto"),
    (["--cluster", "dask://host:1"], "neither bits.budget nor ptq: auto"),
    (["--set", "ptq=auto", "--cluster", "dusk://host:1"], 'did you mean "dask"'),
    (["--set", "ptq=auto", "--cluster", "dask://host:1", "--jobs", "2"], "leave out one"),
]


@pytest.mark.parametrize("command", ["ptq", "qat"])
@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_processes_without_a_use_are_refused_before_any_work(
    command, words, message, files, tmp_path
):
    args = [command, "--recipe", str(files / "r.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*args, *words, "--quiet"])
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_python_takes_and_refuses_processes(files, tmp_path):
    for words, message in (
        ({"jobs": 0}, "found 0, expected 1 or more"),
        ({"jobs": 2}, "neither bits.budget nor ptq: auto"),
        ({"cluster": "dask://host"}, "neither bits.budget nor ptq: auto"),
    ):
        with pytest.raises(RecipeError, match=message):
            qtool.run_ptq(files / "r.yaml", tmp_path / "run", **words)
    with pytest.raises(RecipeError, match="unknown option jobs"):
        qtool.verify("a.onnx", recipe=files / "r.yaml", jobs=2)


def test_estimates_pairs_and_whole_networks_are_not_computed_again(tmp_path, monkeypatch):
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=12, folder=tmp_path)
    monkeypatch.setattr(
        sensitivity, "reference_of", lambda run, count: Reference(run.context, context.calibration)
    )

    def rows(context=context):
        own = SimpleNamespace(context=context, options=RunOptions())
        return measure(own, plan, SensitivityOptions(samples=8, worst=2), None)

    first = rows()
    assert {row.kind for row in first} >= {"both", "cumulative", "pair"}
    assert any(row.fisher for row in first) and any(row.site == "all" for row in first)

    def fail(*args):
        pytest.fail("it was computed again")

    monkeypatch.setattr(PartialNetwork, "run", fail)
    for name in ("fisher_estimates", "hessian_estimates"):
        monkeypatch.setattr(gradients, name, fail)
    assert rows() == first
    computed = []
    for name in ("fisher_estimates", "hessian_estimates"):
        monkeypatch.setattr(gradients, name, lambda *args: computed.append(args) or {})
    rows(replace(context, seed=1))  # both draw at random
    assert len(computed) == 2
