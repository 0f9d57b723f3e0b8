"""Hold what a search tried, and describe it for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from qtool.pipeline.search.trial import TrialResult
from qtool.recipe.model import Recipe
from qtool.report.search_schema import SearchPoint
from qtool.search.mixed_precision import pareto_front


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
        return search_point(self.name, self.recipe, self.result, self.milliseconds)


def search_point(
    name: str, recipe: Recipe, result: TrialResult, milliseconds: float | None = None
) -> SearchPoint:
    """Return a tried recipe as a row of the report.

    Args:
        name: what it is.
        recipe: as it can be run.
        result: its outcome.
        milliseconds: of one sample.
    """
    plain = recipe.model_dump(mode="json", exclude_none=True)
    return SearchPoint(
        name=name,
        bits=plain["bits"],
        ptq=plain.get("ptq"),
        rewrite=plain.get("rewrite"),
        kl=float(f"{result.kl:.6g}"),
        drop=None if result.drop is None else round(result.drop, 4),
        bytes=result.bytes,
        ms=milliseconds,
    )


def front_of(tried: Sequence[Tried]) -> list[SearchPoint]:
    """Return the recipes that no other one beats in bytes, time and divergence, smallest first.

    Args:
        tried: all recipes.
    """
    points = [each.point for each in tried]
    timed = all(point.ms is not None for point in points)  # else times cannot be compared
    keys = [(float(p.bytes), (p.ms or 0.0) if timed else 0.0, p.kl) for p in points]
    return sorted((points[k] for k in pareto_front(keys)), key=lambda point: point.bytes)
