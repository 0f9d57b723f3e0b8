"""The layers that widths are chosen for: their ways, and what each costs and uses."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil

from qtool.errors import RecipeError
from qtool.pipeline.search.latency_table import LatencyTable, measure_latency
from qtool.pipeline.search.layer_costs import (
    OtherLayers,
    fixed_layers,
    layer_costs,
    score,
    uniform,
)
from qtool.pipeline.search.trial import TrialRunner
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
    only_sizes = all(getattr(budget, name) is None for name in ("bops", "latency", "max_drop"))
    return ways if only_sizes or budget.bops is not None else (*ways, "float")


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


def measure_layers(runner: TrialRunner, budget: Budget) -> Measured:
    """Return the layers and what they cost at each width.

    Args:
        runner: of the search.
        budget: of the recipe.
    """
    base, uniform_ways = runner.base, ways_of(runner, budget)
    scored, context = score(runner, base, uniform_ways)
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
