"""Choose the widths of all layers within the recipe's budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qtool.annotation.layer_patterns import name_pattern
from qtool.errors import RecipeError
from qtool.pipeline.search.latency_table import LatencyTable, measure_latency
from qtool.pipeline.search.layer_costs import (
    fixed_layers,
    layer_costs,
    score,
    uniform,
)
from qtool.pipeline.search.trial import TrialRunner, with_bits
from qtool.pipeline.search.tried import Tried, front_of
from qtool.recipe.model import Recipe
from qtool.recipe.sections.budget import Budget, widths_of
from qtool.report.search_schema import SearchPart
from qtool.search.integer_program import COST, Choice, Program
from qtool.search.mixed_precision import Layer, Way, program_of
from qtool.search.partial import fewest_raised
from qtool.steps.stage_cache import StageRecord

# Widths to choose from where the recipe does not say.
WEIGHT_WAYS: tuple[int | str, ...] = (3, 4, 5, 6, 8)
BOPS_WAYS: tuple[int | str, ...] = ("4/4", "4/6", "4/8", "6/6", "6/8", "8/8")
# Sizes between the smallest and the largest file, for the front and for max_drop.
FRONT_POINTS = 4
DROP_POINTS = 16
# Solutions that are tried again with a limit lowered by what their file exceeded it.
ATTEMPTS = 4
# The costs of single layers add up badly where one of them is large; their roots weigh it less.
POWERS = (1.0, 0.5)


@dataclass(frozen=True)
class Measured:
    """The layers and what they cost.

    Attributes:
        layers: all layers with weights, in graph order.
        ways: the ways that each may take.
        fixed: layers that keep the width of their pattern.
        program: of the layers.
        table: times; None where none are needed.
        rest: bytes of the file outside the layers.
        others: number of weights outside the layers, and their bits together.
    """

    layers: list[Layer]
    ways: list[list[Way]]
    fixed: set[str]
    program: Program
    table: LatencyTable | None
    rest: int
    others: tuple[int, float] = (0, 0.0)

    @property
    def parameters(self) -> int:
        """Number of weights, those outside the layers included."""
        return sum(layer.parameters for layer in self.layers) + self.others[0]

    @property
    def bops(self) -> int:
        """Multiply-accumulates times bits at 8/8."""
        return 64 * sum(layer.macs for layer in self.layers)


@dataclass
class BitSearch:
    """One search within a budget.

    Attributes:
        runner: tries recipes.
        budget: of the recipe.
        record: of the running stage, for notes.
    """

    runner: TrialRunner
    budget: Budget
    record: StageRecord
    _tried: list[Tried] = field(default_factory=list, repr=False)

    def run(self) -> tuple[Recipe, SearchPart]:
        """Return the recipe with widths in place of the budget, and what was tried.

        Raises:
            RecipeError: no choice of widths is within the budget.
        """
        chosen = self._within_drop() if self.budget.max_drop is not None else self._within_limits()
        self._measure_front()
        self._note(chosen)
        return chosen.recipe, SearchPart(front=front_of(self._tried), chosen=chosen.point)

    # The layers and what they cost.

    @cached_property
    def _ways(self) -> list[Way]:
        """The widths to choose from, narrowest first, float left out."""
        base, target = self.runner.base, self.runner.prepared.context.target
        own = base.bits.activations
        if not isinstance(own, int):
            raise RecipeError(
                f"widths are chosen for layers in integers, and activations are {own}; write "
                "activations: 8",
                ("bits", "budget"),
            )
        ways = []
        for item in self._among:
            if item == "float":
                continue
            weights, activations = widths_of(item)
            way = Way(weights, own if activations is None else activations)
            for kind, width in (("weights", weights), ("activations", way.activations)):
                lo, hi = target.widths[kind]
                if width is None or not lo <= width <= hi:
                    raise RecipeError(
                        f"{item}, but target {target.name} takes {kind} of {lo} to {hi} bits",
                        ("bits", "budget", "among"),
                    )
            ways.append(way)
        return sorted(dict.fromkeys(ways), key=lambda w: (w.weights or 0, w.activations or 0))

    @cached_property
    def _among(self) -> Sequence[int | str]:
        budget = self.budget
        if budget.among is not None:
            if not [item for item in budget.among if item != "float"]:
                raise RecipeError("found no width in integers", ("bits", "budget", "among"))
            return budget.among
        ways = BOPS_WAYS if budget.bops is not None else WEIGHT_WAYS
        only_sizes = all(getattr(budget, name) is None for name in ("bops", "latency", "max_drop"))
        return ways if only_sizes or budget.bops is not None else (*ways, "float")

    @cached_property
    def _measured(self) -> Measured:
        """The layers and what they cost at each width."""
        runner, base = self.runner, self.runner.base
        scored, context = score(runner, base, self._ways)
        names = [n for n, site in scored[-1].plan.sites.items() if site.weight is not None]
        fixed = fixed_layers(runner, base, names)
        table = None
        if self.budget.latency is not None or "float" in self._among:
            widest = uniform(base, self._ways[-1])
            threads = runner.prepared.options.threads or 1
            table = measure_latency(runner, widest, names, threads)
        times = (table.float_ms, table.integer_ms) if table else None
        layers, ways = layer_costs(scored, context, fixed, times)
        if "float" not in self._among:
            ways = {name: [way for way in own if not way.is_float] for name, own in ways.items()}
        program = program_of(layers, ways, table.conversions if table else ())
        rest = scored[-1].file_bytes - sum(scored[-1].bytes.get(name, 0.0) for name in names)
        own = [ways[each.name] for each in layers]
        return Measured(layers, own, fixed, program, table, int(rest), scored[-1].others)

    def _limits(self) -> dict[str, float]:
        """Return the limits of the program's amounts."""
        measured, budget = self._measured, self.budget
        limits: dict[str, float] = {}
        share, bits = budget.share("weights"), budget.bits
        sizes = ([share * 32] if share is not None else []) + ([bits] if bits is not None else [])
        if sizes:
            limits["bits"] = min(sizes) * measured.parameters - measured.others[1]
        if budget.bytes is not None:
            limits["bytes"] = budget.bytes - measured.rest
        if (bops := budget.share("bops")) is not None:
            limits["bops"] = bops * measured.bops
        latency, table = budget.share("latency"), measured.table
        if latency is not None and table is not None:
            limits["latency"] = latency * table.total_float - table.rest
        return limits

    # Choosing.

    def _within_limits(self) -> Tried:
        """Return the best measured recipe within the limits."""
        program, limits = self._measured.program, self._limits()
        candidates = [self._fitted(_rooted(program, power), limits) for power in POWERS]
        fitting = [tried for tried in (*candidates, self._uniform_within(limits)) if tried]
        if not fitting:
            raise self._impossible(limits)
        return min(fitting, key=lambda tried: tried.result.kl)

    def _fitted(self, program: Program, limits: dict[str, float]) -> Tried | None:
        """Return the program's solution, measured; its file is within the limit of bytes."""
        limits, limit = dict(limits), self.budget.bytes
        for _ in range(ATTEMPTS):
            solution = program.solve(limits)
            if solution is None:
                return None
            tried = self._try("mixed", self._recipe(solution), self._time(solution))
            over = 0.0 if limit is None else tried.result.bytes - limit
            if over <= 0:
                return tried
            limits["bytes"] -= over
        return None

    def _uniform_within(self, limits: dict[str, float]) -> Tried | None:
        """Return the widest uniform recipe within the limits, measured."""
        program, measured = self._measured.program, self._measured
        free = [
            ways
            for layer, ways in zip(measured.layers, measured.ways, strict=True)
            if layer.name not in measured.fixed
        ]
        for way in reversed(self._ways):
            if not all(way in ways for ways in free):
                continue
            chosen = [ways.index(way) if way in ways else 0 for ways in self._measured.ways]
            if all(program.amount(chosen, name) <= limit for name, limit in limits.items()):
                recipe = uniform(self.runner.base, way)
                tried = self._try(f"uniform {way}", recipe, self._time(chosen))
                if self._is_within_bytes(tried):
                    return tried
        return None

    def _within_drop(self) -> Tried:
        """Return the smallest measured recipe whose drop is within max_drop; by bisection."""
        if self.runner.reference.metric is None:
            raise RecipeError(
                "needs labels of calibration samples, on which the drop is measured; add labels to "
                "calibrate, or limit bytes",
                ("bits", "budget", "max_drop"),
            )
        # By their number alone layers would exceed other limits.
        free = (w for w in self._measured.ways if len(w) > 1)
        if not self._limits() and len({way for ways in free for way in ways}) == 2:
            return self._fewest_layers()
        solutions = self._by_size(self._measured.program, DROP_POINTS)
        low, high = 0, len(solutions) - 1  # the largest is taken where none keeps the limit
        while low < high:
            middle = (low + high) // 2
            tried = self._try(
                "mixed", self._recipe(solutions[middle]), self._time(solutions[middle])
            )
            if self._keeps(tried):
                high = middle
            else:
                low = middle + 1
        chosen = self._try("mixed", self._recipe(solutions[low]), self._time(solutions[low]))
        return self._within_or_closest(chosen)

    def _fewest_layers(self) -> Tried:
        """Return the recipe that keeps the drop, the fewest layers on the better of two ways."""
        measured = self._measured
        gains = {
            layer.name: layer.costs[ways[0]] - layer.costs[ways[-1]]
            for layer, ways in zip(measured.layers, measured.ways, strict=True)
            if len(ways) > 1
        }
        ranked = sorted(gains, key=lambda name: -gains[name])

        def raised(names: frozenset[str]) -> Tried:
            solution = [
                len(ways) - 1 if layer.name in names else 0
                for layer, ways in zip(measured.layers, measured.ways, strict=True)
            ]
            title = f"{len(names)} layers raised"
            return self._try(title, self._recipe(solution), self._time(solution))

        chosen = fewest_raised(ranked, lambda names: self._keeps(raised(names)))
        return self._within_or_closest(raised(frozenset(ranked) if chosen is None else chosen))

    def _within_or_closest(self, chosen: Tried) -> Tried:
        """Return a recipe that keeps max_drop; else the closest one, with a warning."""
        within = [tried for tried in self._tried if self._is_within_bytes(tried)]
        if not within:
            raise self._impossible(self._limits())
        if not self._keeps(chosen) or chosen not in within:
            self.record.notes.append(
                f"WARNING: no choice within the limits keeps max_drop {self.budget.max_drop:g} on "
                f"{self.runner.reference.dataset.count} calibration samples; the closest is taken"
            )
            return min(within, key=lambda tried: tried.result.drop or 0.0)
        return chosen

    def _is_within_bytes(self, tried: Tried) -> bool:
        """Return whether the file itself is within the limit; the program only adds up layers."""
        return self.budget.bytes is None or tried.result.bytes <= self.budget.bytes

    def _keeps(self, tried: Tried) -> bool:
        limit = self.budget.max_drop
        return limit is None or tried.result.drop is None or tried.result.drop <= limit

    def _by_size(self, program: Program, count: int) -> list[tuple[int, ...]]:
        """Return solutions from the smallest to the largest file within the limits."""
        limits = self._limits()
        smallest, best = program.solve(limits, "bytes"), program.solve(limits)
        if smallest is None or best is None:
            raise self._impossible(limits)
        low, high = (program.amount(each, "bytes") for each in (smallest, best))
        solutions = [smallest]
        for k in range(1, count):
            size = low + (high - low) * k / (count - 1)
            solution = program.solve({**limits, "bytes": min(size, limits.get("bytes", size))})
            if solution is not None and solution not in solutions:
                solutions.append(solution)
        return solutions

    def _measure_front(self) -> None:
        """Measure solutions of other sizes: what more and fewer bytes would cost."""
        program = self._measured.program
        best, smallest = program.solve({}) or (), program.solve({}, "bytes") or ()
        high, low = (program.amount(each, "bytes") for each in (best, smallest))
        for k in range(1, FRONT_POINTS):
            solution = program.solve({"bytes": low + (high - low) * k / FRONT_POINTS})
            if solution is not None:
                self._try("mixed", self._recipe(solution), self._time(solution))

    # Recipes.

    def _recipe(self, solution: Sequence[int]) -> Recipe:
        """Return the recipe of a solution: one pattern for each layer of another width."""
        measured, base = self._measured, self.runner.base
        own = Way(*_own_widths(base))
        patterns: dict[str, Any] = {}
        for layer, ways, k in zip(measured.layers, measured.ways, solution, strict=True):
            way = ways[k]
            if way == own or layer.name in measured.fixed:
                continue
            widths = {"weights": way.weights, "activations": way.activations}
            patterns[name_pattern(layer.name)] = "float" if way.is_float else widths
        return with_bits(base, patterns)

    def _time(self, solution: Sequence[int]) -> float | None:
        table = self._measured.table
        if table is None:
            return None
        return round(self._measured.program.amount(solution, "latency") + table.rest, 4)

    def _try(self, name: str, recipe: Recipe, milliseconds: float | None = None) -> Tried:
        for tried in self._tried:
            if tried.recipe == recipe:
                return tried
        tried = Tried(name, recipe, self.runner.measure(recipe), milliseconds)
        self._tried.append(tried)
        return tried

    def _impossible(self, limits: dict[str, float]) -> RecipeError:
        """Return the error that names the least that every limit can be."""
        measured, program, table = self._measured, self._measured.program, self._measured.table
        count, others = measured.parameters, measured.others[1]
        least = {name: program.amount(program.solve({}, name) or (), name) for name in limits}
        shown: dict[str, Callable[[float], str]] = {
            "bits": lambda x: (
                f"bits {(x + others) / count:.2f} (weights {(x + others) / count / 32:.1%})"
            ),
            "bytes": lambda x: f"bytes {(x + measured.rest) / 1e6:.3g}MB",
            "bops": lambda x: f"bops {x / measured.bops:.1%}",
            "latency": lambda x: (
                f"latency {(x + table.rest) / table.total_float:.0%}" if table else ""
            ),
        }
        listed = ", ".join(shown[name](least[name]) for name in limits)
        return RecipeError(
            f"no choice of widths among {', '.join(map(str, self._among))} is within the budget; "
            f"the least that each limit alone allows: {listed}; raise a limit, or give narrower "
            "widths in `among`",
            ("bits", "budget"),
        )

    def _note(self, chosen: Tried) -> None:
        reference, result = self.runner.reference, chosen.result
        drop = "" if result.drop is None else f", drop {result.drop:.2f}"
        self.record.notes.append(
            f"{len(self._tried)} recipes tried on {reference.dataset.count} calibration samples; "
            f"chosen: {chosen.name}, {result.bytes} bytes, divergence {result.kl:.3g}{drop}"
        )
        self.record.notes.append(
            "layers were scored alone at each width, by the noise at the output after a repair of "
            "their own"
        )


def _rooted(program: Program, power: float) -> Program:
    """Return the program with costs raised to a power."""
    if power == 1:
        return program
    sites = [
        [Choice({**way.amounts, COST: way.amounts[COST] ** power}, way.is_float) for way in choices]
        for choices in program.sites
    ]
    return Program(sites, program.conversions)


def _own_widths(recipe: Recipe) -> tuple[int | None, int | None]:
    weights, activations = recipe.bits.weights, recipe.bits.activations
    return (
        weights if isinstance(weights, int) else None,
        activations if isinstance(activations, int) else None,
    )
