"""Mixed precision: within the budget, the recipe runs by itself, errors name what is possible."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from contexts import calibrated
from models import BUILDERS, Net, cpu
from onnx import TensorProto

from qtool.errors import RecipeError
from qtool.graph.queries import by_name, macs, nodes_by_name
from qtool.pipeline.context import RunOptions
from qtool.pipeline.dry_run import check
from qtool.pipeline.run import run_ptq
from qtool.pipeline.search import bit_search, layer_costs, reference, resolve, trial
from qtool.pipeline.search.bit_search import BitSearch
from qtool.pipeline.search.layer_costs import OtherLayers, other_layers
from qtool.pipeline.search.measured_layers import Measured, among
from qtool.pipeline.search.sensitivity import run_sensitivity
from qtool.pipeline.search.trial import TrialResult, with_bits
from qtool.progress import silent
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.quant.freeze import freeze
from qtool.recipe.loader import load_recipe, recipe_from_keywords
from qtool.recipe.sections.budget import Budget
from qtool.report.render import render
from qtool.search.mixed_precision import Layer, Way, monotonic, pareto_front, program_of
from qtool.steps.stage_cache import StageCache, StageRecord


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(trial, "MAX_COMPARED", 64)
    monkeypatch.setattr(layer_costs, "SCANNED_MACS", 0)


SMALL = ("calibrate.count=64", "evaluate.count=48", "ptq=[]", "bits={weights: 8}")


def test_the_choice_is_within_the_budget_and_runs_again_to_the_same_bytes(
    digits, tmp_path, monkeypatch
):
    recipe = load_recipe(
        digits / "int8.yaml", [*SMALL, "bits.budget={weights: 16%, among: [3, 8]}"]
    )
    monkeypatch.setattr(bit_search, "FRONT_POINTS", 2)
    report = run_ptq(recipe, tmp_path / "run", RunOptions(threads=1))
    layers, size = report.layers, report.size
    assert {layer.weight_bits for layer in layers} == {3, 8}
    weights = sum(layer.payload_bytes or 0 for layer in layers)
    assert size.weight_bits_mean <= 0.16 * 32 and weights
    search = report.search
    assert search is not None and search.chosen.bytes == size.quantized_bytes
    sizes = [point.bytes for point in search.front]
    divergences = [point.kl for point in search.front]
    assert sizes == sorted(sizes) and divergences == sorted(divergences, reverse=True)
    assert all(point.ms for point in search.front)
    plain = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert plain.bits.budget is None
    again = run_ptq(plain, tmp_path / "again", RunOptions(threads=1))
    assert again.output.sha256 == report.output.sha256
    data = json.loads(report.to_json())["search"]
    assert {"bits", "kl", "bytes", "name"} <= set(data["chosen"])
    for point in data["front"]:
        keys = {key: point[key] for key in ("bits", "ptq") if key in point}
        keys |= {f"calibrate.{key}": value for key, value in point["calibrate"].items()}
        pasted = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
        pasted = load_recipe(digits / "int8.yaml", [*SMALL, *pasted])
        if point == data["chosen"]:
            assert pasted.bits.layers == plain.bits.layers
        else:
            run = run_ptq(pasted, tmp_path / point["name"], RunOptions(threads=1))
            assert run.size.quantized_bytes == point["bytes"]
    for form in ("terminal", "markdown", "html"):
        assert "chosen" in render({"run": report}, form)


@pytest.mark.parametrize(("limit", "uses_all"), [("bits: 6", True), ("max_drop: 50", False)])
def test_samples_that_need_not_judge_the_chosen_file_calibrate_it(
    digits, tmp_path, monkeypatch, limit, uses_all
):
    monkeypatch.setattr(reference, "MIN_CALIBRATED", 16)
    monkeypatch.setattr(bit_search, "FRONT_POINTS", 2)
    changes = ["calibrate.take.every=16", "ptq=[]", f"bits.budget={{{limit}, among: [4, 8]}}"]
    recipe = load_recipe(digits / "int8.yaml", changes)
    cache = StageCache(tmp_path, fresh=True)
    chosen, part = resolve.resolve_search(recipe, cache, RunOptions(threads=1), tmp_path)
    used = part.chosen.calibrate["count"]
    assert chosen.calibrate.count == (recipe.calibrate.count if uses_all else used)
    assert used < recipe.calibrate.count


def test_files_are_weighed_without_the_work_of_the_steps(digits, tmp_path):
    changes = ["calibrate.count=24", "evaluate.count=8", "ptq=[gptq]", "bits={weights: 4}"]
    recipe = load_recipe(digits / "int8.yaml", changes)
    cache = StageCache(tmp_path, fresh=True)
    runner = trial.TrialRunner.of(recipe, cache, RunOptions(threads=1), tmp_path)
    assert runner.file_bytes(runner.base) == runner.measure(runner.base).bytes


def test_a_search_that_was_interrupted_goes_on_from_its_finished_trials(
    digits, tmp_path, monkeypatch
):
    recipe = load_recipe(digits / "int8.yaml", [*SMALL, "calibrate.count=8"])

    def measured():
        cache = StageCache(tmp_path)  # a new process has nothing in memory
        runner = trial.TrialRunner.of(recipe, cache, RunOptions(threads=1), tmp_path)
        return runner.measure(runner.base)

    first = measured()
    monkeypatch.setattr(trial.TrialRunner, "_measure", lambda *args: pytest.fail("it ran again"))
    assert measured() == first


def test_a_budget_below_the_least_says_what_is_possible(digits, tmp_path):
    recipe = load_recipe(digits / "int8.yaml", [*SMALL, "bits.budget={bits: 2, among: [4, 8]}"])
    with pytest.raises(RecipeError, match=r"the least that each limit alone allows: bits 4\.00"):
        run_ptq(recipe, tmp_path / "run", RunOptions(threads=1))
    assert not (tmp_path / "run").exists()


def test_one_width_alone_is_used_where_it_is_not_the_recipes(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(bit_search, "FRONT_POINTS", 1)
    recipe = load_recipe(digits / "int8.yaml", [*SMALL, "bits.budget={bits: 4.5, among: [4]}"])
    report = run_ptq(recipe, tmp_path / "run", RunOptions(threads=1))
    assert {layer.weight_bits for layer in report.layers if layer.weight_bits} == {4}
    assert report.size.weight_bits_mean <= 4.5


class FewLayers(BitSearch):
    """A search whose layers are made up: two, of 100 weights each, with 4 or 8 bits."""

    def __init__(self, budget, others=None):
        bits = {"weights": 8, "activations": 8}
        keywords = {"model": "net.onnx", "calibrate": {"images": "train"}, "bits": bits}
        base = recipe_from_keywords(keywords, "test", Path.cwd(), files=False)
        reference = SimpleNamespace(metric="top1", dataset=SimpleNamespace(count=64))
        context = SimpleNamespace(seed=0, progress=silent, target=cpu())
        super().__init__(
            SimpleNamespace(
                base=base,
                reference=reference,
                measure=self.measure,
                file_bytes=lambda recipe: self.measure(recipe).bytes,
                fewer=None,
                prepared=SimpleNamespace(context=context, options=RunOptions()),
            ),
            Budget.model_validate(budget),
            StageRecord(),
        )
        ways = [Way(4, 8), Way(8, 8)]
        costs, sizes = {ways[0]: 1.0, ways[1]: 0.1}, {ways[0]: 50.0, ways[1]: 100.0}
        layers = [Layer(name, 100, 1000, costs, sizes, {}) for name in "ab"]
        program = program_of(layers, dict.fromkeys("ab", ways))
        others = others or OtherLayers()
        self.__dict__["_measured"] = Measured(layers, [ways, ways], set(), program, None, 0, others)

    def measure(self, recipe):
        narrow = len(recipe.bits.layers)
        return TrialResult(narrow, 5.0 * narrow, 0.1, 200 - 50 * narrow, 2.0, 1.0, 1e10)


def test_max_drop_exceeds_no_other_limit():
    search = FewLayers({"max_drop": 1, "bytes": 160, "among": [4, 8]})
    _, part = search.run()
    assert part.chosen.bytes == 150 and part.chosen.drop == 5
    assert any("no choice within the limits keeps max_drop" in note for note in search.record.notes)
    _, part = FewLayers({"max_drop": 1, "among": [4, 8]}).run()
    assert part.chosen.bytes == 200 and part.chosen.drop == 0


def test_nothing_is_chosen_that_is_worse_than_what_was_tried_within_the_limits(monkeypatch):
    search = FewLayers({"bytes": 160, "among": [4, 8]})
    measure = search.measure

    def measured(recipe):
        """The uniform width comes closest, whatever the layers cost alone."""
        result = measure(recipe)
        return replace(result, bytes=100, kl=0.5) if recipe.bits.weights == 4 else result

    search.runner.measure = measured
    search.runner.file_bytes = lambda recipe: measured(recipe).bytes
    _, part = search.run()
    assert part.chosen.name == "uniform 4/8" and part.chosen.bytes == 100
    assert any("uniform 4/8 within the limits: 100 bytes" in n for n in search.record.notes)
    # Of a method that finds the worst choice alone, a point of the front is better.
    search = FewLayers({"bytes": 160, "among": [4, 8]})
    worst = SimpleNamespace(solvers=lambda problem: [lambda limits: (0, 0)], summary="")
    monkeypatch.setattr(FewLayers, "_method", worst)
    _, part = search.run()
    assert part.chosen.bytes == 150 and part.chosen.kl == 1


def test_files_that_steps_make_larger_are_within_the_limit_too(monkeypatch):
    budget, limits = {"bytes": 160, "among": [4, 8]}, []
    method = FewLayers(budget)._method

    def counted(problem):
        (solve, *_) = method.solvers(problem)
        return [lambda own: limits.append(own["bytes"]) or solve(own)]

    monkeypatch.setattr(FewLayers, "_method", SimpleNamespace(solvers=counted, summary=""))
    monkeypatch.setattr(FewLayers, "_front_solutions", ())

    def chosen_bytes(written):
        """Return what is chosen where the steps change the bytes of every file."""
        limits.clear()
        search = FewLayers(budget)
        search.runner.measure = lambda recipe: replace(
            search.measure(recipe), bytes=written(search.measure(recipe).bytes)
        )
        return search.run()[1].chosen.bytes

    assert chosen_bytes(lambda weighed: weighed) == 150 and limits == [160]
    assert chosen_bytes(lambda weighed: weighed + 20) == 120 and limits == [160, 150, 140]
    with pytest.raises(RecipeError, match="no choice of widths"):
        chosen_bytes(lambda weighed: 161)
    assert len(limits) == bit_search.ATTEMPTS


def test_bops_count_layers_that_stay_float():
    # 2 x 1000 MACs at 8/8 and 10 in floats: 80 % of 64 x 2010, less 10 x 32 x 32, is 92672.
    budget, others = {"bops": "80%", "among": [4, 8]}, OtherLayers(macs=10, bops=10 * 32 * 32)
    for search, limit in ((FewLayers(budget), 102400), (FewLayers(budget, others), 92672)):
        assert search._measured.limits(search.budget) == {"bops": pytest.approx(limit)}
    with pytest.raises(RecipeError, match=r"the least that each limit alone allows: bops 57\.8%"):
        FewLayers({**budget, "bops": "50%"}, others).run()


def test_float_is_a_way_where_a_limit_is_about_time_or_accuracy():
    """Beside other limits too: widths alone buy no time."""
    for limits, is_way in (
        ({"bytes": "1MB"}, False),
        ({"bops": "50%"}, False),
        ({"latency": "80%"}, True),
        ({"bops": "50%", "latency": "80%"}, True),
        ({"bops": "50%", "max_drop": 1}, True),
    ):
        assert ("float" in among(Budget.model_validate(limits))) is is_way


def test_other_layers_cost_32_by_32_bits(tmp_path):
    plan, context = calibrated(BUILDERS["residual"](), rows=8, folder=tmp_path)
    assert other_layers(context, freeze(context.model, plan)) == OtherLayers()
    name, site = next((n, s) for n, s in plan.sites.items() if s.weight is not None)
    count = macs(nodes_by_name(context.model.graph)[name])
    weights = by_name(context.model.graph)[site.weight].const_value.size
    bits = Bits(layers={name: FLOAT})
    plan, context = calibrated(BUILDERS["residual"](), bits, rows=8, folder=tmp_path)
    others = other_layers(context, freeze(context.model, plan))
    assert others == OtherLayers(weights, 32.0 * weights, count, 1024.0 * count)


def test_haq_chooses_within_limits_and_not_for_max_drop():
    method = {"haq": {"episodes": 4, "warmup": 3}}
    search = FewLayers({"bytes": 160, "among": [4, 8], "method": method})
    _, part = search.run()
    assert part.chosen.bytes <= 160 and any("haq" in note for note in search.record.notes)
    with pytest.raises(RecipeError, match="haq chooses within limits of size"):
        FewLayers({"max_drop": 1, "method": "haq"}).run()


def test_auto_and_a_budget_exclude_each_other(digits, tmp_path):
    recipe = load_recipe(digits / "int8.yaml", ["ptq=auto", "bits.budget={bits: 4}"])
    with pytest.raises(RecipeError, match="remove one of the two"):
        run_ptq(recipe, tmp_path / "run")
    recipe = load_recipe(digits / "int8.yaml", ["ptq=[gptq, auto]"])
    with pytest.raises(RecipeError, match="others stand beside it"):
        run_ptq(recipe, tmp_path / "run")


@pytest.mark.parametrize("setting", ["ptq=auto", "bits.budget={bits: 4}"])
def test_a_search_refuses_what_it_cannot_follow(setting, digits, tmp_path, monkeypatch):
    recipe = load_recipe(digits / "int8.yaml", [setting])
    with pytest.raises(RecipeError, match="leave out --plan"):
        run_ptq(recipe, tmp_path / "run", RunOptions(plan_file=tmp_path / "plan.json"))
    monkeypatch.setattr(resolve, "expected", lambda: (0, 2))
    with pytest.raises(RecipeError, match="a search runs in one process"):
        run_ptq(recipe, tmp_path / "run")


SEARCHES = [
    ("ptq={auto: {time: 90s}}", "chooses the recipe first, for up to 90s"),
    ("bits.budget={bits: 4}", "chooses the widths first"),
]


@pytest.mark.parametrize(("setting", "note"), SEARCHES)
def test_a_dry_run_says_that_a_search_comes_first_and_a_scan_refuses_it(
    setting, note, digits, tmp_path
):
    recipe = load_recipe(digits / "int8.yaml", [setting])
    assert note in check(recipe, RunOptions(threads=1)).search
    with pytest.raises(RecipeError, match="its run folder holds the recipe that was chosen"):
        run_sensitivity(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


BAD = [
    ("{}", "found no limit, expected one of weights"),
    ("{weights: 18}", "found 18, expected a share such as 18%"),
    ("{bytes: 3 apples}", "expected a size such as 1.5MB"),
    ("{bits: 4, among: [4, 0]}", "found 0, expected bits of weights"),
    ("{bits: 4, among: ['4-8']}", "expected bits of weights"),
    ("{weight: 18%}", "unknown key"),
    ("{bits: 4, method: hack}", 'did you mean "haq"'),
    ("{bits: 4, method: {haq: {episodes: 0}}}", "episodes"),
]


@pytest.mark.parametrize(("budget", "words"), BAD)
def test_wrong_budgets_are_refused(budget, words, digits):
    with pytest.raises(RecipeError) as error:
        load_recipe(digits / "int8.yaml", [f"bits.budget={budget}"])
    assert words in str(error.value)


def test_a_budget_is_left_to_the_commands_that_search(digits):
    import qtool

    with pytest.raises(RecipeError, match="choose the widths"):
        qtool.quantize(
            qtool.load(digits / "digits.onnx"),
            {"images": str(digits / "data" / "train"), "count": 8},
            bits={"budget": {"bits": 4}},
        )


def test_with_bits_adds_patterns_behind_those_of_the_user():
    keywords = {
        "model": "net.onnx",
        "calibrate": {"images": "train"},
        "bits": {"layers": {"first": 8}, "budget": {"bits": 4}},
    }
    recipe = recipe_from_keywords(keywords, "test", Path.cwd(), files=False)
    changed = with_bits(recipe, {"name:a": "float", "name:b": {"weights": 4}}, weights=6)
    assert list(changed.bits.layers) == ["first", "name:a", "name:b"]
    assert changed.bits.weights == 6 and changed.bits.budget is None
    assert changed.bits.layers["name:b"].activations is None


def test_more_bits_never_cost_more():
    costs = {Way(4, 8): 1.0, Way(6, 8): 2.0, Way(8, 8): 0.5, Way(None, None): 0.0}
    assert monotonic(costs) == {
        Way(4, 8): 2.0,
        Way(6, 8): 2.0,
        Way(8, 8): 0.5,
        Way(None, None): 0.0,
    }


def test_the_front_holds_what_nothing_beats():
    points = [(1, 9), (2, 5), (3, 5), (4, 1), (2, 5), (9, 9)]
    assert pareto_front(points) == [0, 1, 3]


def test_an_embedding_keeps_the_recipes_width(tmp_path, monkeypatch):
    """It has no choice, so a budget of the uniform file's bytes leaves the layers what they had."""
    monkeypatch.setattr(bit_search, "FRONT_POINTS", 1)
    net = Net()
    rows = net.add("Gather", net.weight(400, 64), net.input("ids", "N", 6, dtype=TensorProto.INT64))
    hidden = net.add("Relu", net.add("MatMul", rows, net.weight(64, 32)))
    mean = net.add("ReduceMean", hidden, axes=[1], keepdims=0)
    net.add("MatMul", mean, net.weight(32, 8), out="y")
    onnx.save(net.output("y").proto(), tmp_path / "net.onnx")
    ids = np.random.default_rng(0).integers(0, 400, (96, 6))
    np.savez(tmp_path / "x.npz", ids=ids)
    bits = {"weights": 4, "activations": 8}
    keywords = {
        "model": str(tmp_path / "net.onnx"),
        "calibrate": {"arrays": str(tmp_path / "x.npz")},
        "ptq": (),
    }

    def size(bits, out):
        recipe = recipe_from_keywords({**keywords, "bits": bits}, "test", tmp_path, files=True)
        return run_ptq(recipe, tmp_path / out, RunOptions(threads=1)).size.quantized_bytes

    uniform = size(bits, "uniform")
    budget = {"bytes": str(uniform + 512), "among": [3, 4, 8]}
    assert size({**bits, "budget": budget}, "mixed") <= uniform + 512
