"""Hold what a search tried, and describe it for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from qtool.pipeline.search.trial import TrialResult
from qtool.recipe.model import Recipe
from qtool.report.search_schema import SearchPoint
from qtool.search.mixed_precision import pareto_front

CHOSEN = ("method", "count")
"""Keys of ``calibrate`` that searches choose."""


@dataclass(frozen=True)
class Tried:
    """A recipe that was tried, with its outcome, its time a sample, and seconds of the trial."""

    name: str
    recipe: Recipe
    result: TrialResult
    milliseconds: float | None = None
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
            ms=self.milliseconds,
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
    points = [each.point for each in tried]
    timed = all(point.ms is not None for point in points)  # else times cannot be compared
    keys = [(float(p.bytes), _rough(p.ms or 0.0) if timed else 0.0, p.kl) for p in points]
    return sorted((points[k] for k in pareto_front(keys)), key=lambda point: point.bytes)


def _rough(milliseconds: float) -> float:
    """Return a time to two digits: a difference of 1 % is noise, and no reason to be shown."""
    return float(f"{milliseconds:.2g}")
