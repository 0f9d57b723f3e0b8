"""The order of the steps, what is used, when the search ends, and what it says."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qtool.pipeline.search import climb
from qtool.pipeline.search.climb import Climb
from qtool.pipeline.search.layer_costs import NothingToChooseError
from qtool.pipeline.search.measured_layers import Measured
from qtool.pipeline.search.trial import TrialResult, with_bits
from qtool.pipeline.search.tried import Tried, front_of
from qtool.recipe.loader import recipe_from_keywords
from qtool.search.auto import Auto, Deadline, seconds_of
from qtool.search.mixed_precision import Layer, Way, program_of
from qtool.steps.stage_cache import StageRecord

LAYERS = ("a", "b", "c")


class Runner:
    """Stands in for the trials: the divergence is a product over the steps of a recipe."""

    def __init__(self, factors, bits=8, limit=None, float_layers=None):
        keywords = {
            "model": "net.onnx",
            "calibrate": {"images": "train"},
            "bits": {"weights": bits, "activations": 8},
        }
        if limit is not None:
            keywords["gates"] = {"max_drop": limit}
            keywords["evaluate"] = {"images": "test"}
        self.base = recipe_from_keywords(keywords, "test", Path.cwd(), files=False)
        self.deadline = Deadline()
        self.factors, self.float_layers = factors, float_layers or {}
        self.recipes = []
        self.reference = SimpleNamespace(dataset=SimpleNamespace(count=100))
        self.prepared = SimpleNamespace(context=SimpleNamespace(model=None))

    def measure(self, recipe):
        self.recipes.append(recipe)
        names = {step.name for step in recipe.ptq or ()} | set(recipe.rewrite or ())
        names |= {recipe.calibrate.method.name}
        kl = 1.0
        for name, factor in self.factors.items():
            kl *= factor if name in names else 1
        raised = [pattern.removeprefix("name:") for pattern in recipe.bits.layers]
        for layer, factor in self.float_layers.items():
            kl *= factor if layer in raised else 1
        return TrialResult(kl, 10 * kl, 0.1, 1000 + 500 * len(raised), 2.0, 0.5, 1e10)


def measured(runner, base, budget, samples):
    """Stands in for the costs of single layers: those whose factor is least lose most."""
    ways = [Way(width, base.bits.activations) for width in budget.among]
    layers = [
        Layer(
            name=name,
            parameters=100,
            macs=100,
            costs={way: (1 - runner.float_layers.get(name, 1.0)) / 4**way.weights for way in ways},
            bytes={way: 125.0 * way.weights for way in ways},
            milliseconds={},
        )
        for name in LAYERS
    ]
    program = program_of(layers, dict.fromkeys(LAYERS, ways))
    return Measured(layers, [ways] * len(layers), set(), program, None, 0)


def searched(monkeypatch, runner, auto=None, macs=10**12, findings=()):
    monkeypatch.setattr(climb, "total_macs", lambda model: macs)
    search = Climb(runner, auto or Auto(), StageRecord(), runner.deadline)
    monkeypatch.setattr(Climb, "_ranked", lambda self, recipe: list(LAYERS))
    monkeypatch.setattr(climb, "measure_layers", measured)
    monkeypatch.setattr(Climb, "_findings", lambda *args: findings)
    return (*search.run(), search.record.notes)


def test_it_ends_as_soon_as_the_gate_holds(monkeypatch):
    runner = Runner({"auto": 0.01, "gptq": 0.001})
    recipe, part, _ = searched(monkeypatch, runner)
    assert [rung.name for rung in part.rungs] == ["rounding", "ranges"]
    assert recipe.calibrate.method.name == "auto" and recipe.ptq == ()
    assert part.rungs[1].gained == pytest.approx(9.9) and part.rungs[1].added_bytes == 0
    assert part.chosen.name == "ranges" and part.rungs[1].added_ms == 0
    assert part.chosen.calibrate["method"] == "auto"


def test_a_step_that_does_not_help_is_left_out(monkeypatch):
    runner = Runner({"auto": 1.2, "equalize": 0.995, "bias_correction": 0.5, "gptq": 0.01})
    recipe, part, _ = searched(monkeypatch, runner)
    used = {rung.name: rung.used for rung in part.rungs}
    assert used == {
        "rounding": True,
        "ranges": False,
        "equalization": False,
        "bias correction": True,
        "gptq": True,
    }
    assert recipe.calibrate.method.name == "mse" and recipe.rewrite is None
    assert [step.name for step in recipe.ptq] == ["gptq"]


def test_the_causes_of_the_loss_are_named(monkeypatch):
    findings = [SimpleNamespace(finding=f"Cause {k}", recipe_lines=[]) for k in range(5)]
    runner = Runner({"equalize": 0.001})
    _, part, notes = searched(monkeypatch, runner, findings=findings)
    assert part.rungs[0].findings == ["Cause 0", "Cause 1", "Cause 2"]
    assert "rounding loses 10.00 points: Cause 0" in notes
    _, part, notes = searched(monkeypatch, Runner({}, limit=20), findings=findings)
    assert part.rungs[0].findings is None and not any("Cause" in note for note in notes)


def test_narrow_weights_are_repaired_first(monkeypatch):
    """Biases are part of that repair."""
    runner = Runner({"auto": 0.5, "gptq": 0.05}, bits=4, limit=0.3)
    recipe, part, _ = searched(monkeypatch, runner)
    # No layer costs anything alone, so none gets more bits.
    names = [rung.name for rung in part.rungs]
    assert names == ["rounding", "gptq", "ranges", "equalization", "3 layers float"]
    assert recipe.calibrate.method.name == "auto"
    assert [step.name for step in recipe.ptq] == ["gptq"]
    _, part, _ = searched(monkeypatch, Runner({"gptq": 2.0}, bits=4))
    assert "bias correction" in [rung.name for rung in part.rungs]


def test_equalization_comes_before_bits_where_a_diagnosis_names_it(monkeypatch):
    factors = {"gptq": 0.5, "equalize": 0.01}
    finding = SimpleNamespace(finding="Channel ranges", recipe_lines=["rewrite: [equalize]"])
    layers = dict.fromkeys(LAYERS, 0.9)
    for findings, names in (
        ([finding], ["rounding", "gptq", "equalization"]),
        ([], ["rounding", "gptq", "weights of 8.00 bits", "ranges", "equalization"]),
    ):
        runner = Runner(factors, bits=4, limit=0.2, float_layers=layers)
        _, part, _ = searched(monkeypatch, runner, findings=findings)
        assert [rung.name for rung in part.rungs] == names


def test_the_fewest_bytes_of_more_bits_are_added(monkeypatch):
    runner = Runner({"gptq": 0.5}, bits=4, limit=2.0, float_layers={"a": 0.1, "b": 0.9, "c": 0.9})
    recipe, part, _ = searched(monkeypatch, runner)
    assert set(recipe.bits.layers) == {"name:a"}
    assert recipe.bits.layers["name:a"].weights == 5
    assert part.rungs[-1].name == "weights of 4.33 bits" and part.rungs[-1].added_bytes == 500
    assert all("auto" not in {step.name for step in r.ptq or ()} for r in runner.recipes)


def test_reconstruction_where_there_is_time(monkeypatch):
    runner = Runner({"gptq": 0.5, "qdrop": 0.1})
    recipe, part, _ = searched(monkeypatch, runner, Auto(time="10m"), macs=10**7)
    assert [step.name for step in recipe.ptq] == ["gptq", "qdrop"]
    assert recipe.ptq[1].options["iterations"] == climb.MAX_ITERATIONS
    assert "qdrop" in [rung.name for rung in part.rungs]
    _, part, _ = searched(monkeypatch, runner, Auto(time="10m"), macs=10**10)
    assert "qdrop" not in [rung.name for rung in part.rungs]


def test_nothing_helps_and_the_run_says_so(monkeypatch):
    recipe, part, notes = searched(monkeypatch, Runner({}))
    assert recipe.bits.layers == {} and part.chosen.name == "rounding"
    assert any("nothing that was tried keeps the drop within 1" in note for note in notes)


def slow_runner(monkeypatch, seconds):
    """A clock, and a kind of runner whose trials take so many seconds of it."""
    clock = SimpleNamespace(now=0.0)

    class Slow(Runner):
        def measure(self, recipe):
            clock.now += seconds
            return super().measure(recipe)

    monkeypatch.setattr(climb.time, "perf_counter", lambda: clock.now)
    return clock, Slow


def test_bits_are_not_bought_for_noise(monkeypatch):
    class Noisy(Runner):
        def measure(self, recipe):
            return replace(super().measure(recipe), drop=0.2, drop_error=0.25)

    runner = Noisy({}, limit=0.3, float_layers=dict.fromkeys(LAYERS, 0.5))
    recipe, _, notes = searched(monkeypatch, runner)
    assert recipe.bits.layers == {}
    assert any("not proven to be within 0.3" in note for note in notes)


def test_the_time_is_kept(monkeypatch):
    clock, slow = slow_runner(monkeypatch, 20)
    runner = slow({"auto": 0.9, "bias_correction": 0.5})
    recipe, part, notes = searched(monkeypatch, runner, Auto(time="65s"))
    assert clock.now <= 65 * 1.2
    assert [rung.name for rung in part.rungs] == ["rounding", "ranges", "equalization"]
    assert recipe.calibrate.method.name == "auto"
    assert any("the time of 65s is over" in note for note in notes)


@pytest.mark.parametrize("endless", ["gptq", "ranking"])
def test_work_that_takes_longer_than_estimated_is_broken_off(endless, monkeypatch):
    clock, slow = slow_runner(monkeypatch, 5)

    def work():
        for done in range(1000):
            clock.now += 3
            runner.deadline("layers", done, 1000)

    class Endless(slow):
        def measure(self, recipe):
            if endless in {step.name for step in recipe.ptq or ()}:
                work()
            return super().measure(recipe)

    runner = Endless({"auto": 0.9, "bias_correction": 0.5})
    monkeypatch.setattr(climb, "total_macs", lambda model: 10**12)
    monkeypatch.setattr(Climb, "_ranked", lambda *args: work() if endless == "ranking" else [])
    monkeypatch.setattr(Climb, "_findings", lambda *args: [])
    search = Climb(runner, Auto(time="100s"), StageRecord(), runner.deadline)
    recipe, part = search.run()
    assert 100 < clock.now <= 100 * 1.2
    assert [step.name for step in recipe.ptq] == ["bias_correction"]
    assert part.chosen.name == "bias correction"
    assert any("the time of 100s is over" in note for note in search.record.notes)


def test_no_bits_are_added_without_labels(monkeypatch):
    class Unlabelled(Runner):
        def measure(self, recipe):
            return replace(super().measure(recipe), drop=None, drop_error=None)

    runner = Unlabelled({"gptq": 0.5}, float_layers=dict.fromkeys(LAYERS, 0.1))
    recipe, _, notes = searched(monkeypatch, runner)
    assert recipe.bits.layers == {} and [step.name for step in recipe.ptq] == ["gptq"]
    assert any("no layer was given more bits" in note for note in notes)


def test_what_keeps_the_drop_is_used_when_the_time_is_over(monkeypatch):
    _, slow = slow_runner(monkeypatch, 10)
    runner = slow({}, bits=4, limit=2.0, float_layers={"a": 0.1, "b": 0.9, "c": 0.9})
    # Four trials: three of the steps, and the middle of eight sizes; the bisection ends there.
    recipe, part, notes = searched(monkeypatch, runner, Auto(time="41s"))
    assert set(recipe.bits.layers) == {"name:a", "name:b", "name:c"}
    assert part.rungs[-1].used and part.rungs[-1].name.startswith("weights of ")
    assert any("the time of 41s is over" in note for note in notes)


def test_what_comes_closest_is_used_where_nothing_is_enough_in_time(monkeypatch):
    _, slow = slow_runner(monkeypatch, 10)
    runner = slow({}, bits=4, limit=0.1, float_layers={"a": 0.1, "b": 0.9, "c": 0.9})
    recipe, part, _ = searched(monkeypatch, runner, Auto(time="51s"))
    assert set(recipe.bits.layers) == {"name:a", "name:b", "name:c"}
    assert part.rungs[-1].used and part.rungs[-1].drop == pytest.approx(0.81)


def test_layers_of_a_fixed_width_get_no_bits(monkeypatch):
    def nothing(*args):
        raise NothingToChooseError("every layer's width is set")

    runner = Runner({"gptq": 0.5}, bits=4, float_layers=dict.fromkeys(LAYERS, 0.1))
    monkeypatch.setattr("test_climb.measured", nothing)
    recipe, _, _ = searched(monkeypatch, runner)
    assert {widths.weights for widths in recipe.bits.layers.values()} == {"float"}


@pytest.mark.parametrize(
    ("milliseconds", "front"), [(0.196, ["gptq"]), (0.181, ["gptq"]), (0.15, ["gptq", "ranges"])]
)
def test_noise_of_times_puts_nothing_on_the_front(milliseconds, front):
    recipe, result = Runner({}).base, TrialResult(0.286, 0.6, 0.1, 30, 0.197, 1.0, 1e10)
    other = replace(result, kl=0.307, ms=milliseconds)
    floats = with_bits(recipe, {"name:a": "float"})
    tried = [Tried("gptq", recipe, result), Tried("ranges", floats, other)]
    assert [point.name for point in front_of(tried)] == front
    # The same kernels, whatever the clock says.
    for wider in (
        with_bits(recipe, {}, weights=6),
        with_bits(recipe, {"name:a": {"weights": 4, "activations": recipe.bits.activations}}),
    ):
        assert [p.name for p in front_of([tried[0], Tried("wider", wider, other)])] == ["gptq"]


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1.5h", 5400)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds == Auto(time=text).seconds


@pytest.mark.parametrize("text", ["10", "m", "0s", "ten minutes", 10])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="expected a time such as 10m"):
        Auto(time=text)
