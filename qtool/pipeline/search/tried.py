"""Hold what a search tried, and describe it for the report."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qtool.pipeline.search.trial import TrialResult
from qtool.recipe.model import Recipe
from qtool.report.search_schema import SearchPoint
from qtool.search.mixed_precision import pareto_front

CHOSEN = ("method", "count")
"""Keys of ``calibrate`` that searches choose."""

# Share by which two measurements of one file's time differ.
TIME_NOISE = 0.1


@dataclass(frozen=True)
class Tried:
    """A recipe that was tried, with its outcome and the seconds of the trial."""

    name: str
    recipe: Recipe
    result: TrialResult
    seconds: float = 0.0

    @property
    def point(self) -> SearchPoint:
        """The row of the report."""
        plain = self.recipe.model_dump(mode="json", exclude_none=True)
        return SearchPoint(
            name=self.name,
            bits=plain["bits"],
            ptq=plain.get("ptq"),
            rewrite=plain.get("rewrite"),
            calibrate={k: plain["calibrate"][k] for k in CHOSEN if k in plain["calibrate"]},
            kl=self.result.kl,
            drop=self.result.drop,
            bytes=self.result.bytes,
            ms=self.result.ms,
        )

    @property
    def outcome(self) -> str:
        """Bytes, divergence and drop in words, for notes."""
        result = self.result
        parts = [f"{result.bytes} bytes", f"divergence {result.kl:.3g}"]
        if result.drop is not None:
            parts.append(f"drop {result.drop:.2f}")
        if result.drop_error is not None:
            parts[-1] += f" (standard error {result.drop_error:.2f})"
        return ", ".join(parts)


def layer_count(count: int) -> str:
    """Return a number of layers in words.

    Args:
        count: of the layers.
    """
    return "1 layer" if count == 1 else f"{count} layers"


def find(tried: Sequence[Tried], recipe: Recipe) -> Tried | None:
    """Return the trial of a recipe; None where it was not tried.

    Args:
        tried: all trials.
        recipe: to look for.
    """
    return next((each for each in tried if each.recipe == recipe), None)


def front_of(tried: Sequence[Tried]) -> list[SearchPoint]:
    """Return the recipes that no other one beats in bytes, time and divergence, smallest first.

    Args:
        tried: all recipes.
    """
    points, ranks = [each.point for each in tried], _time_ranks(tried)
    keys = [(float(p.bytes), float(rank), p.kl) for p, rank in zip(points, ranks, strict=True)]
    return sorted((points[k] for k in pareto_front(keys)), key=lambda point: point.bytes)


def _time_ranks(tried: Sequence[Tried]) -> list[int]:
    """Return the rank of each file's time; times that differ by noise have the same one.

    Files that execute the same layers in the same types have one time, the median of all.
    """
    times: dict[object, list[float]] = {}
    for each in tried:
        times.setdefault(_placement(each.recipe), []).append(each.result.ms)
    medians = {placement: statistics.median(own) for placement, own in times.items()}
    ranks, rank, first = dict[object, int](), -1, 0.0
    for placement, time in sorted(medians.items(), key=lambda item: item[1]):
        if rank < 0 or time > first * (1 + TIME_NOISE):
            rank, first = rank + 1, time
        ranks[placement] = rank
    return [ranks[_placement(each.recipe)] for each in tried]


def _placement(recipe: Recipe) -> object:
    """Return what a recipe says about kernels: layers in float, and the widths of activations."""
    bits = recipe.bits
    base = (bits.weights == "float", bits.activations)
    layers = {
        name: ((own.weights or bits.weights) == "float", own.activations or bits.activations)
        for name, own in bits.layers.items()
    }
    others = {name: kernel for name, kernel in layers.items() if kernel != base}
    return base, tuple(sorted(others.items(), key=str))
