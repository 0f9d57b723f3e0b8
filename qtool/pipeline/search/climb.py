"""Climb from plain rounding to a recipe that keeps the accuracy, for ``ptq: auto``."""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from qtool.annotation.layer_patterns import name_pattern
from qtool.diagnosis.diagnose import diagnose
from qtool.pipeline.checks.diagnosis import settings_of
from qtool.pipeline.search.layer_costs import NothingToChooseError, fixed_layers
from qtool.pipeline.search.measured_layers import measure_layers
from qtool.pipeline.search.spread.ahead import scan_ahead
from qtool.pipeline.search.trial import TrialRunner, with_bits
from qtool.pipeline.search.tried import Tried, find, front_of, layer_count
from qtool.quant.freeze import freeze
from qtool.recipe.choice import Choice
from qtool.recipe.model import Recipe
from qtool.recipe.sections.budget import Budget
from qtool.report.schema import Finding
from qtool.report.search_schema import Rung, SearchPart
from qtool.search.auto import Auto, Deadline, OutOfTimeError
from qtool.search.partial import fewest_raised, with_one_quantized
from qtool.steps.stage_cache import StageRecord
from qtool.verification.layers.table import total_macs

# A step is used where the divergence falls by more than this share.
GAIN = 0.01
# The largest drop where the recipe has no gate.
DEFAULT_DROP = 1.0
# Reconstruction by gradient: iterations that fit into half of what is left, at the speed of the
# first trial's comparison, as a number in the recipe, so that it runs again to the same bytes.
RECONSTRUCTION = "qdrop"
SAMPLES_PER_ITERATION = 32
MIN_ITERATIONS, MAX_ITERATIONS = 50, 500
# A trial is started where this many times that of the best recipe so far fits into the time.
RESERVE = 1.1
# Samples of the scans that measure single layers.
RANKING_SAMPLES = 32
# Widths of weights that are tried where they are narrower, and sizes of the file between them.
MORE_BITS = (4, 5, 6, 8)
SIZES = 8
# Causes of the loss of plain rounding that are named.
SHOWN_FINDINGS = 3
WIDE = 8


@dataclass
class Climb:
    """One search of ``ptq: auto``.

    Attributes:
        runner: tries recipes.
        auto: its time.
        record: of the running stage, for notes.
        deadline: receives the progress of the trials, and ends them.
    """

    runner: TrialRunner
    auto: Auto
    record: StageRecord
    deadline: Deadline
    _start: float = field(default_factory=lambda: time.perf_counter(), repr=False)
    _reserve: float = field(default=0.0, repr=False)  # seconds of the best recipe's trial
    _is_equalization_advised: bool = field(default=True, repr=False)  # unless a diagnosis does not
    _tried: list[Tried] = field(default_factory=list, repr=False)
    _rungs: list[Rung] = field(default_factory=list, repr=False)

    def run(self) -> tuple[Recipe, SearchPart]:
        """Return the recipe that was chosen, without ``auto``, and what was tried."""
        best = self._measure("rounding", self.runner.base.model_copy(update={"ptq": ()}))
        self._add_rung(best, best, True, time.perf_counter() - self._start)
        self.deadline.until = self._start + self.auto.seconds
        self._take(best)
        try:
            self._diagnose(best)
            self._climb()
        except OutOfTimeError:
            self.record.notes.append(f"the time of {self.auto.time} is over")
        best = self._best
        self._note(best)
        part = SearchPart(front=front_of(self._tried), chosen=best.point, rungs=self._rungs)
        return best.recipe, part

    def _climb(self) -> None:
        """Try one step after the other; what is best so far stays in ``_best``."""
        first, later = self._repairs()
        for name in first:
            self._repair(name, REPAIRS[name])
        self._add_bits()
        for name in later:
            self._repair(name, REPAIRS[name])
        # Last, since every trial behind it would learn again.
        iterations = self._iterations()
        if iterations >= MIN_ITERATIONS:
            step = Choice(name=RECONSTRUCTION, options={"iterations": iterations})
            self._repair(RECONSTRUCTION, partial(_with_steps, ("gptq", step)))
        self._add_float_layers()

    def _repair(self, name: str, change: Callable[[Recipe], Recipe]) -> None:
        """Try a step where the gate does not hold yet."""
        if self._holds(self._best):
            return
        recipe = change(self._best.recipe)
        if recipe != self._best.recipe:
            self._rung(name, recipe)

    def _diagnose(self, rounded: Tried) -> None:
        """Name the causes of what plain rounding loses, in notes and in the rung."""
        drop = rounded.result.drop
        if self._holds(rounded) or drop is None or drop <= 0:
            return
        findings = self._findings(rounded, drop)
        lines = [line for finding in findings for line in finding.recipe_lines]
        self._is_equalization_advised = any("equalize" in line for line in lines)
        causes = [finding.finding for finding in findings[:SHOWN_FINDINGS]]
        self.record.notes += [f"rounding loses {drop:.2f} points: {cause}" for cause in causes]
        self._rungs[-1] = self._rungs[-1].model_copy(update={"findings": causes})

    def _findings(self, rounded: Tried, drop: float) -> list[Finding]:
        plan, context = self.runner.quantized(rounded.recipe)
        settings = settings_of(rounded.recipe, context.calibration.count)
        progress = partial(self.deadline, "diagnose")
        return diagnose(context, freeze(context.model, plan), plan, settings, drop, progress)

    # Steps that cost no bytes.

    def _repairs(self) -> tuple[list[str], list[str]]:
        """Return the names of the steps that are tried before layers get more bits, and after.

        Where weights are narrow, their rounding comes first. Ranges repair activations alone, and
        dozens of simulations choose them: beside narrow weights wide activations lose little. The
        same holds for equalization where no diagnosis names it.
        """
        weights, activations = self.runner.base.bits.weights, self.runner.base.bits.activations
        if not isinstance(weights, int) or weights >= WIDE:
            return ["ranges", "equalization", "bias correction", "gptq"], []
        first, later = ["gptq"], list[str]()
        wide = isinstance(activations, int) and activations >= WIDE
        (later if wide else first).append("ranges")
        (first if self._is_equalization_advised else later).append("equalization")
        return [*first, "bias correction"], later

    def _iterations(self) -> int:
        """Return the iterations of a block's reconstruction for which there is time."""
        macs = max(total_macs(self.runner.prepared.context.model), 1)
        # Forward and backward cost three times the multiply-accumulates.
        each = 3 * SAMPLES_PER_ITERATION * macs / self._tried[0].result.macs_per_second
        count = (self.auto.seconds - self._elapsed) / 2 / each
        return int(min(count, MAX_ITERATIONS)) // MIN_ITERATIONS * MIN_ITERATIONS

    def _rung(self, name: str, recipe: Recipe) -> None:
        """Try one step and use it where held-out samples agree."""
        start = time.perf_counter()
        before, tried = self._best, self._measure(name, recipe)
        used = tried.result.kl < (1 - GAIN) * before.result.kl
        self._add_rung(before, tried, used, time.perf_counter() - start)
        if used:
            self._take(tried)

    # More bits, and float layers.

    def _add_bits(self) -> None:
        """Give layers more bits, so that the accuracy holds, by an integer program."""
        weights, activations = self.runner.base.bits.weights, self.runner.base.bits.activations
        if not isinstance(weights, int) or not isinstance(activations, int):
            return
        if weights >= WIDE or self._needs_no_more:
            return
        start, before = time.perf_counter(), self._best
        self._check_time()
        among = (weights, *(width for width in MORE_BITS if width > weights))
        budget = Budget(max_drop=self._limit, among=among)
        try:
            measured = measure_layers(self.runner, before.recipe, budget, RANKING_SAMPLES)
        except NothingToChooseError:
            return
        solutions = measured.by_size({}, SIZES)
        if len(solutions) < 2:
            return

        def sized(k: int) -> Tried:
            name = f"weights of {measured.mean_bits(solutions[k]):.2f} bits"
            return self._measure(name, measured.recipe(before.recipe, solutions[k]))

        def smallest() -> Tried:
            sizes = range(len(solutions) - 1)
            return sized(bisect_left(sizes, True, 1, key=lambda k: self._within(sized(k))))

        self._use_smallest(before, start, smallest)

    def _add_float_layers(self) -> None:
        """Leave the fewest layers in float, so that the accuracy holds."""
        if self._needs_no_more:
            return
        start, before = time.perf_counter(), self._best
        ranked = self._ranked(before.recipe)
        if not ranked:
            return

        def floats(names: frozenset[str]) -> Tried:
            layers = {name_pattern(name): "float" for name in ranked if name in names}
            recipe = with_bits(before.recipe, layers)
            return self._measure(f"{layer_count(len(names))} float", recipe)

        def smallest() -> Tried:
            trim = len(ranked) // 4
            chosen = fewest_raised(ranked, lambda names: self._within(floats(names)), trim)
            return floats(frozenset(ranked) if chosen is None else chosen)

        self._use_smallest(before, start, smallest)

    @property
    def _needs_no_more(self) -> bool:
        """Return whether the gate holds, or nothing says when there are bits enough."""
        return self._holds(self._best) or self._best.result.drop is None

    def _use_smallest(self, before: Tried, start: float, smallest: Callable[[], Tried]) -> None:
        """Use what a search for the smallest recipe returns.

        Where the time is over in it: the smallest so far that keeps half the limit, which may be
        larger than it need be; else the one of the least divergence.
        """
        earlier = len(self._tried)
        try:
            self._use(before, smallest(), start)
        except OutOfTimeError:
            if tried := self._tried[earlier:]:
                enough = [each for each in tried if self._within(each)]
                best = min(tried, key=lambda each: each.result.kl)
                chosen = min(enough, key=lambda each: each.result.bytes) if enough else best
                self._use(before, chosen, start)
            raise

    def _take(self, tried: Tried) -> None:
        self._best, self._reserve = tried, tried.seconds

    def _use(self, before: Tried, tried: Tried, start: float) -> None:
        """Add the rung of layers with more bits, and use it where the divergence falls."""
        used = tried.result.kl < before.result.kl
        self._add_rung(before, tried, used, time.perf_counter() - start)
        if used:
            self._take(tried)

    def _ranked(self, recipe: Recipe) -> list[str]:
        """Return the layers that can become float, the most damaging first."""
        self._check_time()
        plan, context = self.runner.quantized(recipe)
        scan = self.runner.scan(plan, context, RANKING_SAMPLES)
        scan_ahead(self.runner, recipe, [scan])
        costs = {row.site: row.kl for row in scan.run()}
        weighted = [name for name, site in plan.sites.items() if site.weight is not None]
        free = set(weighted) - fixed_layers(self.runner, self.runner.base, weighted)
        ranked = sorted(sorted(free), key=lambda name: -costs.get(name, 0.0))
        return with_one_quantized(ranked, len(weighted))

    # Measuring and deciding.

    def _measure(self, name: str, recipe: Recipe) -> Tried:
        if (earlier := find(self._tried, recipe)) is not None:
            return earlier
        self._check_time()
        start = time.perf_counter()
        result = self.runner.measure(recipe)
        # A trial that was finished in an earlier run says how long the next one takes, too.
        seconds = max(time.perf_counter() - start, result.seconds)
        tried = Tried(name, recipe, result, seconds)
        self._tried.append(tried)
        self.deadline.progress(
            "search", min(int(self._elapsed), int(self.auto.seconds)), int(self.auto.seconds)
        )
        return tried

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _check_time(self) -> None:
        """Raise OutOfTimeError where another trial may not fit into the time."""
        if self._elapsed + RESERVE * self._reserve > self.auto.seconds:
            raise OutOfTimeError

    @property
    def _limit(self) -> float:
        limit = self.runner.base.gates.max_drop
        return DEFAULT_DROP if limit is None else limit

    def _holds(self, tried: Tried) -> bool:
        """Return whether the gate holds with a margin: one standard error of the drop."""
        drop, error = tried.result.drop, tried.result.drop_error
        return drop is not None and drop + (error or 0.0) <= self._limit

    def _within(self, tried: Tried) -> bool:
        """Return whether the drop is within half the limit, or one standard error of none.

        Bits are not bought for noise.
        """
        drop, error = tried.result.drop, tried.result.drop_error
        return drop is not None and drop <= min(max(self._limit / 2, error or 0.0), self._limit)

    def _add_rung(self, before: Tried, tried: Tried, used: bool, seconds: float) -> None:
        old, new = before.result, tried.result
        self._rungs.append(
            Rung(
                name=tried.name,
                used=used,
                kl=new.kl,
                drop=new.drop,
                bytes=new.bytes,
                ms=new.ms,
                seconds=round(seconds, 2),
                gained=_difference(old.drop, new.drop),
                added_bytes=new.bytes - old.bytes,
                added_ms=round(new.ms - old.ms, 4),
            )
        )

    def _note(self, best: Tried) -> None:
        samples = self.runner.reference.dataset.count
        self.record.notes.append(
            f"chosen: {best.name}: {best.outcome}, on {samples} calibration samples"
        )
        if best.result.drop is None:
            self.record.notes.append(
                "no drop can be estimated without labels: every step was tried, by the divergence, "
                "and no layer was given more bits"
            )
        elif best.result.drop > self._limit:
            self.record.notes.append(
                f"WARNING: nothing that was tried keeps the drop within {self._limit:g} on these "
                "samples"
            )
        elif not self._holds(best):
            self.record.notes.append(
                f"WARNING: the drop is not proven to be within {self._limit:g} on these samples"
            )


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _with_ranges(recipe: Recipe) -> Recipe:
    calibrate = recipe.calibrate.model_copy(update={"method": Choice(name="auto")})
    return recipe.model_copy(update={"calibrate": calibrate})


def _with_equalization(recipe: Recipe) -> Recipe:
    names = recipe.rewrite or ()
    if "equalize" in names:
        return recipe
    return recipe.model_copy(update={"rewrite": (*names, "equalize")})


def _with_bias_correction(recipe: Recipe) -> Recipe:
    # GPTQ corrects biases too.
    return recipe if recipe.ptq else _with_steps(("bias_correction",), recipe)


def _with_steps(steps: Sequence[str | Choice], recipe: Recipe) -> Recipe:
    """Return the recipe with other post-training steps."""
    choices = [Choice(name=step) if isinstance(step, str) else step for step in steps]
    return recipe.model_copy(update={"ptq": tuple(choices)})


REPAIRS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "ranges": _with_ranges,
    "equalization": _with_equalization,
    "bias correction": _with_bias_correction,
    "gptq": partial(_with_steps, ("gptq",)),
}
"""Steps that cost no bytes, and how each changes a recipe."""
