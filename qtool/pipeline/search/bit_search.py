"""Choose the widths of all layers within the recipe's budget."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice

from qtool.errors import RecipeError
from qtool.pipeline.search.layer_costs import uniform
from qtool.pipeline.search.measured_layers import Measured, among, measure_layers, ways_of
from qtool.pipeline.search.spread.ahead import try_ahead
from qtool.pipeline.search.trial import TrialRunner
from qtool.pipeline.search.tried import Tried, find, front_of, layer_count
from qtool.recipe.model import Recipe
from qtool.recipe.sections.budget import Budget
from qtool.report.search_schema import SearchPart
from qtool.search import BUDGET_METHODS
from qtool.search.mixed_precision import BudgetMethod, Problem, Solver, Way
from qtool.search.partial import fewest_raised, with_one_quantized
from qtool.steps.stage_cache import StageRecord

# Sizes between the smallest and the largest file, for the front and for max_drop.
FRONT_POINTS = 4
DROP_POINTS = 16
# Solutions of one solver, each with the limit lowered by what the file of the last exceeded it.
ATTEMPTS = 8


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

        Without ``max_drop`` all samples calibrate the chosen file: its drop need not be measured.

        Raises:
            RecipeError: no choice of widths is within the budget.
        """
        self._check_method()
        chosen = self._within_drop() if self.budget.max_drop is not None else self._within_limits()
        self._note(chosen)
        recipe = chosen.recipe
        if self.budget.max_drop is None and self.runner.fewer is not None:
            recipe = self.runner.on_all_samples(recipe)
            self.record.notes.append("the chosen recipe calibrates on all samples")
        return recipe, SearchPart(front=front_of(self._tried), chosen=chosen.point)

    def _check_method(self) -> None:
        """Refuse a method that cannot look for the smallest file, where max_drop needs it.

        Raises:
            RecipeError: with what to remove.
        """
        if self.budget.max_drop is not None and not self._method.minimizes_size:
            raise RecipeError(
                f"{self.budget.method.name} chooses within limits of size, bops and latency, "
                "max_drop is none of them; remove it, or the method",
                ("bits", "budget", "method"),
            )

    @cached_property
    def _measured(self) -> Measured:
        return measure_layers(self.runner, self.runner.base, self.budget)

    # Choosing.

    def _within_limits(self) -> Tried:
        """Return the best measured recipe within the limits, the widest uniform one among them."""
        limits, base = self._measured.limits(self.budget), self.runner.base
        way = self._uniform_within(limits)
        plain = [] if way is None else [uniform(base, way)]
        solvers = self._method.solvers(self._problem(self._next_to(way)))
        solutions = [self._solutions(solve, dict(limits)) for solve in solvers]
        first = [next(own, None) for own in solutions]
        if way is None and not any(first):
            raise self._impossible(limits)
        self._try_ahead([*first, *self._front_solutions], plain)
        tries = [self._try(f"uniform {way}", recipe) for recipe in plain]
        uniforms = [tried for tried in tries if self._is_within_bytes(tried)]
        for tried in uniforms:
            self.record.notes.append(f"{tried.name} within the limits: {tried.outcome}")
        fitting: list[Tried] = []
        for solution, others in zip(first, solutions, strict=True):
            mixed = (self._mixed(each) for each in chain([solution], others) if each is not None)
            fitting += islice(filter(self._is_within_bytes, mixed), 1)
        fitting += uniforms  # behind the others: of equal ones the first is taken
        if not fitting:
            raise self._impossible(limits)
        fitting += [tried for tried in self._front(limits) if self._is_within_bytes(tried)]
        return min(fitting, key=lambda tried: tried.result.kl)

    @property
    def _method(self) -> BudgetMethod:
        return self.budget.method.build(BUDGET_METHODS)

    def _problem(self, neighbors: Sequence[Sequence[int]] | None) -> Problem:
        measured, context = self._measured, self.runner.prepared.context

        def loss(solution: Sequence[int]) -> float:
            return self._mixed(solution).result.kl

        states = [layer.state(k) for k, layer in enumerate(measured.layers)]
        return Problem(measured.program, states, loss, context.seed, context.progress, neighbors)

    def _solutions(self, solve: Solver, limits: dict[str, float]) -> Iterator[tuple[int, ...]]:
        """Yield solutions whose files, weighed without the steps, are within the limit of bytes.

        The limit of the program is lowered by what files of earlier solutions exceeded it; the
        second and later solutions are for steps that made the file of the one before larger.
        """
        for _ in range(ATTEMPTS):
            if (solution := solve(limits)) is None:
                return
            over = self._excess(self._measured.recipe(self.runner.base, solution))
            if over <= 0:
                yield solution
                over = self._mixed(solution).result.bytes - (self.budget.bytes or 0.0)
            limits["bytes"] -= over

    def _excess(self, recipe: Recipe) -> float:
        """Return by how many bytes the file of a recipe, without its steps, exceeds the limit."""
        limit = self.budget.bytes
        return 0.0 if limit is None else self.runner.file_bytes(recipe) - limit

    def _try_ahead(
        self, solutions: Sequence[Sequence[int] | None], recipes: Sequence[Recipe] = ()
    ) -> None:
        """Try recipes that no other one's outcome decides about, in the processes of the run."""
        mixed = [
            self._measured.recipe(self.runner.base, solution)
            for solution in solutions
            if solution is not None
        ]
        try_ahead(self.runner, [*recipes, *mixed])

    def _uniform_within(self, limits: dict[str, float]) -> Way | None:
        """Return the widest uniform width whose file, without the steps, is within the limits."""
        program, measured = self._measured.program, self._measured
        free = [
            ways
            for layer, ways in zip(measured.layers, measured.ways, strict=True)
            if layer.name not in measured.fixed
        ]
        for way in reversed(ways_of(self.runner, self.budget)):
            if not all(way in ways for ways in free):
                continue
            is_allowed = program.allows(self._positions(way), limits)
            if is_allowed and self._excess(uniform(self.runner.base, way)) <= 0:
                return way
        return None

    def _positions(self, way: Way) -> list[int]:
        """Return the position of a width among the ways of each layer; 0 where it has none."""
        return [ways.index(way) if way in ways else 0 for ways in self._measured.ways]

    def _next_to(self, way: Way | None) -> list[list[int]] | None:
        """Return the positions of the ways of each layer that are at most one step from a width."""
        if way is None:
            return None
        return [
            [k for k in range(len(ways)) if abs(k - own) <= 1]
            for ways, own in zip(self._measured.ways, self._positions(way), strict=True)
        ]

    def _within_drop(self) -> Tried:
        """Return the smallest measured recipe whose drop is within max_drop."""
        if self.runner.reference.metric is None:
            raise RecipeError(
                "the drop is estimated on calibration samples, which have no labels, and the "
                "recipe names no metric of class scores; add labels to calibrate, or "
                "`evaluate: {metric: top1}`, or limit bytes",
                ("bits", "budget", "max_drop"),
            )
        limits = self._measured.limits(self.budget)
        # By their number alone layers would exceed other limits.
        free = (w for w in self._measured.ways if len(w) > 1)
        if not limits and len({way for ways in free for way in ways}) == 2:
            chosen = self._fewest_layers()
        else:
            chosen = self._by_bisection()
        earlier = list(self._tried)
        front = self._front(limits)
        within = [tried for tried in (*earlier, *front) if self._is_within_bytes(tried)]
        if not within:
            raise self._impossible(limits)
        keeping = [tried for tried in (chosen, *front) if tried in within and self._keeps(tried)]
        if keeping:
            return min(keeping, key=lambda tried: tried.result.bytes)
        self.record.notes.append(
            f"WARNING: no choice within the limits keeps max_drop {self.budget.max_drop:g} on "
            f"{self.runner.reference.dataset.count} calibration samples; the closest is taken"
        )
        return min(within, key=lambda tried: (tried.result.drop or 0.0, tried.result.kl))

    def _by_bisection(self) -> Tried:
        """Return the smallest recipe that keeps the drop, as if larger ones always kept it too."""
        limits = self._measured.limits(self.budget)
        solutions = self._measured.by_size(limits, DROP_POINTS)
        if not solutions:
            raise self._impossible(limits)
        smaller = range(len(solutions) - 1)  # the largest is taken where none keeps the limit
        self._try_ahead([solutions[len(smaller) // 2], *self._front_solutions])
        first = bisect_left(smaller, True, key=lambda k: self._keeps(self._mixed(solutions[k])))
        return self._mixed(solutions[first])

    def _fewest_layers(self) -> Tried:
        """Return the recipe that keeps the drop, the fewest layers on the better of two ways."""
        measured = self._measured
        self._try_ahead(self._front_solutions)
        gains = {
            layer.name: layer.costs[ways[0]] - layer.costs[ways[-1]]
            for layer, ways in zip(measured.layers, measured.ways, strict=True)
            if len(ways) > 1
        }
        ranked = sorted(gains, key=lambda name: -gains[name])
        if any(ways[-1].is_float for ways in measured.ways):
            ranked = with_one_quantized(ranked, len(measured.layers))

        def raised(names: frozenset[str]) -> Tried:
            solution = [
                len(ways) - 1 if layer.name in names else 0
                for layer, ways in zip(measured.layers, measured.ways, strict=True)
            ]
            return self._mixed(solution, f"{layer_count(len(names))} raised")

        chosen = fewest_raised(ranked, lambda names: self._keeps(raised(names)))
        return raised(frozenset(ranked) if chosen is None else chosen)

    def _is_within_bytes(self, tried: Tried) -> bool:
        """Return whether the file itself is within the limit; the program only adds up layers."""
        return self.budget.bytes is None or tried.result.bytes <= self.budget.bytes

    def _keeps(self, tried: Tried) -> bool:
        limit = self.budget.max_drop
        return limit is None or tried.result.drop is None or tried.result.drop <= limit

    def _front(self, limits: dict[str, float]) -> list[Tried]:
        """Measure solutions of other sizes: what more and fewer bytes would cost.

        Args:
            limits: of the amounts of the program.

        Returns:
            Those that are within the limits, but for the bytes of the written file.
        """
        within = []
        for solution in self._front_solutions:
            tried = self._mixed(solution)
            within += [tried] if self._measured.program.allows(solution, limits) else []
        return within

    @cached_property
    def _front_solutions(self) -> list[tuple[int, ...]]:
        """Solutions of sizes between the smallest and the largest file."""
        program = self._measured.program
        best, smallest = program.solve({}) or (), program.solve({}, "bytes") or ()
        high, low = (program.amount(each, "bytes") for each in (best, smallest))
        sizes = (low + (high - low) * k / FRONT_POINTS for k in range(1, FRONT_POINTS))
        solutions = (program.solve({"bytes": size}) for size in sizes)
        return [solution for solution in solutions if solution is not None]

    # Recipes.

    def _mixed(self, solution: Sequence[int], name: str | None = None) -> Tried:
        name = name or f"mixed, {self._measured.mean_bits(solution):.2f} bits"
        recipe = self._measured.recipe(self.runner.base, solution)
        return self._try(name, recipe)

    def _try(self, name: str, recipe: Recipe) -> Tried:
        if (earlier := find(self._tried, recipe)) is not None:
            return earlier
        tried = Tried(name, recipe, self.runner.measure(recipe))
        self._tried.append(tried)
        return tried

    def _impossible(self, limits: dict[str, float]) -> RecipeError:
        """Return the error that names the least that every limit can be."""
        widths = ", ".join(map(str, among(self.budget)))
        remedy = "raise a limit"
        if set(limits) != {"latency"}:  # kernels compute in 8 bits: fewer buy no time
            remedy += ", or give narrower widths in `among`"
        return RecipeError(
            f"no choice of widths among {widths} is within the budget; the least that each limit "
            f"alone allows: {self._measured.least(limits)}; {remedy}",
            ("bits", "budget"),
        )

    def _note(self, chosen: Tried) -> None:
        samples = self.runner.reference.dataset.count
        self.record.notes += [
            f"{len(self._tried)} recipes tried on {samples} calibration samples; chosen: "
            f"{chosen.name}: {chosen.outcome}",
            self._method.summary,
        ]
        limit, table = self.budget.share("latency"), self._measured.table
        if limit is not None and table is not None:
            share = chosen.result.ms / table.total_float
            warning = "WARNING: " if share > limit else ""
            self.record.notes.append(
                f"{warning}the chosen file's kernels take {100 * share:.0f} % of the float file's "
                f"time, the limit is {100 * limit:.0f} % of it as added up layer by layer"
            )
