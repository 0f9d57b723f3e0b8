"""Scores of the float model under the usual preprocessings, as a typed result."""

from dataclasses import dataclass
from math import sqrt

# Another preprocessing is reported where it scores so many points and standard errors above.
MIN_GAIN = 10.0
MIN_DEVIATIONS = 3.0


@dataclass(frozen=True)
class PreprocessingScore:
    """The float model's top-1 with one preprocessing.

    Attributes:
        name: in words, such as "imagenet" or "as in the recipe, color: bgr".
        settings: what the recipe's ``preprocess`` would hold, as a YAML flow mapping.
        hits: for each sample, whether the label was the highest output.
    """

    name: str
    settings: str
    hits: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """Top-1 in %."""
        return 100 * sum(self.hits) / len(self.hits)

    def is_far_above(self, other: "PreprocessingScore") -> bool:
        """Return whether this is above ``other`` by points and by McNemar's test."""
        pairs = list(zip(self.hits, other.hits, strict=True))
        gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        points = 100 * (gained - lost) / len(pairs)
        return points >= MIN_GAIN and gained - lost >= MIN_DEVIATIONS * sqrt(gained + lost)


@dataclass(frozen=True)
class PreprocessingCheck:
    """The float model under the recipe's preprocessing and the usual ones, on the same samples.

    Attributes:
        current: the recipe's own, or the assumed one.
        others: the usual ones, best first; empty where the recipe's leaves nothing to gain.
    """

    current: PreprocessingScore
    others: tuple[PreprocessingScore, ...] = ()

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.current.hits)

    @property
    def better(self) -> PreprocessingScore | None:
        """The best other preprocessing, where it is far above the recipe's."""
        best = next(iter(self.others), None)
        return best if best is not None and best.is_far_above(self.current) else None
