"""The layers that widths are chosen for: their ways, and what each costs and uses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from qtool.annotation.layer_patterns import name_pattern
from qtool.errors import RecipeError
from qtool.pipeline.search.latency_table import LatencyTable, measure_latency
from qtool.pipeline.search.layer_costs import (
    MAX_SCANNED,
    OtherLayers,
    fixed_layers,
    layer_costs,
    score,
    uniform,
)
from qtool.pipeline.search.trial import TrialRunner, with_bits
from qtool.recipe.model import Recipe
from qtool.recipe.sections.budget import Budget, widths_of
from qtool.search.integer_program import Program
from qtool.search.mixed_precision import FLOAT_BITS, Layer, Way, program_of

# Widths to choose from where the recipe does not say.
WEIGHT_WAYS: tuple[int | str, ...] = (3, 4, 5, 6, 8)
BOPS_WAYS: tuple[int | str, ...] = ("4/4", "4/6", "4/8", "6/6", "6/8", "8/8")
# Bits times bits that a share of `bops` refers to.
REFERENCE_BOPS = 8 * 8


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
        others: what lies outside the layers.
    """

    layers: list[Layer]
    ways: list[list[Way]]
    fixed: set[str]
    program: Program
    table: LatencyTable | None
    rest: int
    others: OtherLayers = field(default_factory=OtherLayers)

    @property
    def parameters(self) -> int:
        """Number of weights, those outside the layers included."""
        return sum(layer.parameters for layer in self.layers) + self.others.parameters

    @property
    def bops(self) -> int:
        """Bit operations of the whole network at 8/8, layers that stay float included."""
        return REFERENCE_BOPS * (sum(layer.macs for layer in self.layers) + self.others.macs)

    def limits(self, budget: Budget) -> dict[str, float]:
        """Return the limits of the program's amounts: of the budget, less what others use.

        Args:
            budget: of the recipe.
        """
        limits: dict[str, float] = {}
        share, bits = budget.share("weights"), budget.bits
        sizes = [share * FLOAT_BITS] if share is not None else []
        sizes += [bits] if bits is not None else []
        if sizes:
            limits["bits"] = min(sizes) * self.parameters - self.others.bits
        if budget.bytes is not None:
            limits["bytes"] = budget.bytes - self.rest
        if (bops := budget.share("bops")) is not None:
            limits["bops"] = bops * self.bops - self.others.bops
        latency, table = budget.share("latency"), self.table
        if latency is not None and table is not None:
            limits["latency"] = latency * table.total_float - table.rest
        return limits

    def by_size(self, limits: Mapping[str, float], count: int) -> list[tuple[int, ...]]:
        """Return solutions from the smallest to the most precise within limits; empty: none is.

        Args:
            limits: name of an amount -> its largest sum.
            count: of the sizes between them, both included.
        """
        program = self.program
        smallest, best = program.solve(limits, "bytes"), program.solve(limits)
        if smallest is None or best is None:
            return []
        low, high = (program.amount(each, "bytes") for each in (smallest, best))
        solutions = [smallest]
        for k in range(1, count):
            size = low + (high - low) * k / (count - 1)
            solution = program.solve({**limits, "bytes": min(size, limits.get("bytes", size))})
            if solution is not None and solution not in solutions:
                solutions.append(solution)
        return solutions

    def recipe(self, base: Recipe, solution: Sequence[int]) -> Recipe:
        """Return the recipe of a solution: one pattern for each layer of another width.

        Args:
            base: the recipe whose widths are chosen.
            solution: position of the way of each layer.
        """
        own = [base.bits.weights, base.bits.activations]
        patterns: dict[str, Any] = {}
        for layer, ways, k in zip(self.layers, self.ways, solution, strict=True):
            way = ways[k]
            if [way.weights, way.activations] == own or layer.name in self.fixed:
                continue
            widths = {"weights": way.weights, "activations": way.activations}
            patterns[name_pattern(layer.name)] = "float" if way.is_float else widths
        return with_bits(base, patterns)

    def mean_bits(self, solution: Sequence[int]) -> float:
        """Return the mean bits of all weights of a solution, 32 for those of floats.

        Args:
            solution: position of the way of each layer.
        """
        return (self.program.amount(solution, "bits") + self.others.bits) / self.parameters

    def least(self, names: Iterable[str]) -> str:
        """Return the least value of each limit of the budget, as a recipe has it.

        Args:
            names: of the program's amounts that are limited.
        """
        parts = []
        for name in names:
            solution = self.program.solve({}, name)
            amount = 0.0 if solution is None else self.program.amount(solution, name)
            if name == "bits":
                bits = (amount + self.others.bits) / self.parameters
                parts.append(f"bits {_up(bits, 2)} (weights {_up(100 * bits / FLOAT_BITS, 1)}%)")
            elif name == "bytes":
                parts.append(f"bytes {_up((amount + self.rest) / 1000, 1)}kB")
            elif name == "bops":
                parts.append(f"bops {_up(100 * (amount + self.others.bops) / self.bops, 1)}%")
            elif self.table is not None:
                share = (amount + self.table.rest) / self.table.total_float
                parts.append(f"latency {_up(100 * share, 1)}%")
        return ", ".join(parts)


def _up(value: float, digits: int) -> str:
    """Return a number rounded up, so that it can stand as a limit."""
    return f"{ceil(value * 10**digits - 1e-6) / 10**digits:.{digits}f}"


def among(budget: Budget) -> Sequence[int | str]:
    """Return the widths to choose from, as a recipe has them.

    Args:
        budget: of the recipe.

    Raises:
        RecipeError: there is no width in integers.
    """
    if budget.among is not None:
        if not [item for item in budget.among if item != "float"]:
            raise RecipeError(
                "found no width in integers; give one beside float, such as 8",
                ("bits", "budget", "among"),
            )
        return budget.among
    ways = BOPS_WAYS if budget.bops is not None else WEIGHT_WAYS
    sizes_alone = budget.latency is None and budget.max_drop is None
    return ways if sizes_alone else (*ways, "float")


def ways_of(runner: TrialRunner, budget: Budget) -> list[Way]:
    """Return the ways to choose from, narrowest first, float left out.

    Args:
        runner: of the search.
        budget: of the recipe.

    Raises:
        RecipeError: the target lacks a width, or activations are no integers.
    """
    base, target = runner.base, runner.prepared.context.target
    own = base.bits.activations
    if not isinstance(own, int):
        raise RecipeError(
            f"widths are chosen for layers in integers, and activations are {own}; write "
            "activations: 8",
            ("bits", "budget"),
        )
    ways = []
    for item in among(budget):
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


def measure_layers(
    runner: TrialRunner, base: Recipe, budget: Budget, samples: int = MAX_SCANNED
) -> Measured:
    """Return the layers and what they cost at each width.

    Args:
        runner: of the search.
        base: the recipe whose widths are chosen.
        budget: names the widths, and the limits.
        samples: that a layer is measured on, at most.

    Raises:
        NothingToChooseError: patterns set the width of every layer.
        RecipeError: the target lacks a width, or activations are no integers.
    """
    uniform_ways = ways_of(runner, budget)
    scored, context = score(runner, base, uniform_ways, samples)
    widest = scored[-1]
    names = [n for n, site in widest.plan.sites.items() if site.weight is not None]
    fixed = fixed_layers(runner, base, names)
    table = None
    if budget.latency is not None or "float" in among(budget):
        table = measure_latency(runner, uniform(base, uniform_ways[-1]), names)
    layers, ways = layer_costs(scored, context, fixed, table)
    if "float" not in among(budget):
        ways = {name: [way for way in own if not way.is_float] for name, own in ways.items()}
    program = program_of(layers, ways, table.conversions if table else ())
    rest = widest.file_bytes - sum(widest.bytes.get(name, 0.0) for name in names)
    own = [ways[each.name] for each in layers]
    return Measured(layers, own, fixed, program, table, int(rest), widest.others)
