"""Find the order of the classes that a model was trained with, from its outputs and the labels."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

# An order is reported where it scores so many points above the labels as they are, and the
# difference is so many standard errors: below, the outputs do not show it.
MIN_GAIN = 10.0
MIN_DEVIATIONS = 4.0
# No assignment is searched among more pairs of a label and a class: it would take gigabytes.
MOST_PAIRS = 1 << 26
# More pairs of classes than these are not listed one by one.
LISTED = 6


@dataclass(frozen=True)
class LabelOrder:
    """Another order of the classes, which fits the model's outputs better than the labels do.

    Attributes:
        name: the rule, such as "shifted by 1" or "permuted".
        samples: how many were compared.
        accuracy: top-1 with the labels as they are, in %.
        relabelled: top-1 with the other order in %, on samples that it was not fitted to.
        order: for each number in the labels, the number of the class in the model's output.
        classes: names of the labels' classes, by number; empty where they have none.
    """

    name: str
    samples: int
    accuracy: float
    relabelled: float
    order: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return one sentence for the report."""
        changed = [(k, to) for k, to in enumerate(self.order) if k != to]
        shown = ", ".join(f"{self._name(k)} is class {to}" for k, to in changed[:LISTED])
        more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
        return (
            f"the classes of the model are {self.name}: top-1 is {self.accuracy:.1f} % with the "
            f"labels as they are, {self.relabelled:.1f} % in that order ({self.samples} samples); "
            f"{shown}{more}"
        )

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f"label {label}"


def find_label_order(
    outputs: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None
) -> LabelOrder | None:
    """Search an order of the classes that fits the outputs far better than the labels do.

    Orders that need no fitting come first: shifted by one, and folders sorted as numbers. Then the
    best one-to-one assignment of labels to classes, fitted to one half of the samples of each class
    and scored on the other half, in both directions. It is a diagnosis: no label is changed.

    Source: Kuhn 1955, "The Hungarian method for the assignment problem", in scipy's
    ``linear_sum_assignment``.

    Args:
        outputs: class scores [N, C].
        labels: class numbers [N], from 0 to C - 1.
        classes: names of the labels' classes by number, where they have names.

    Returns:
        The order, or None where none is better by MIN_GAIN points and MIN_DEVIATIONS.
    """
    labels = labels.astype(np.int64)  # products of unsigned ones would wrap around
    scores, guesses = outputs.shape[1], outputs.argmax(1)
    hits = guesses == labels
    count = max(int(labels.max()) + 1, min(len(classes or ()), scores))
    candidates = [
        (name, order, order[labels] == guesses)
        for name, order in _rules(scores, int(labels.max()) + 1, classes or ())
    ]
    if (
        count * scores <= MOST_PAIRS
        and 100 * (_reachable(guesses, labels, scores) - hits.mean()) >= MIN_GAIN
    ):
        halves, crossed = _halves(labels), np.zeros(len(labels), bool)
        for fit, rest in (halves, halves[::-1]):
            order = _assign(guesses[fit], labels[fit], (count, scores))
            crossed[rest] = order[labels[rest]] == guesses[rest]
        candidates.append(("permuted", _assign(guesses, labels, (count, scores)), crossed))
    better = [candidate for candidate in candidates if _is_better(candidate[2], hits)]
    if not better:
        return None
    name, order, new = max(better, key=lambda candidate: candidate[2].sum())
    return _label_order(name, order, new, hits, classes)


def _rules(scores: int, labels: int, classes: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the orders that need no fitting: name, and the class of each label."""
    same = np.arange(max(labels, len(classes)))
    if labels < scores:
        yield "shifted by 1 (class 0 of the model is none of the labels')", same + 1
    yield "shifted by -1 (label 0 is none of the model's classes)", same - 1
    if len(classes) > 1 and all(re.search(r"\d+", name) for name in classes):
        natural = sorted(classes, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        position = {name: k for k, name in enumerate(natural)}
        yield "sorted as numbers", np.array([position[name] for name in classes])


def _is_better(new: np.ndarray, old: np.ndarray) -> bool:
    """Return whether new hits are more than the old ones, by points and by McNemar's test."""
    gained, lost = int((new & ~old).sum()), int((old & ~new).sum())
    points = 100 * (gained - lost) / len(old)
    return points >= MIN_GAIN and gained - lost >= MIN_DEVIATIONS * sqrt(gained + lost)


def _reachable(guesses: np.ndarray, labels: np.ndarray, scores: int) -> float:
    """Return an upper limit of the accuracy of any order: every label takes its best class."""
    counts = np.bincount(labels * scores + guesses, minlength=(int(labels.max()) + 1) * scores)
    return float(counts.reshape(-1, scores).max(1).sum() / len(labels))


def _halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide positions into two halves that hold every second sample of each class."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    rank = np.arange(len(order)) - starts
    return order[rank % 2 == 0], order[rank % 2 == 1]


def _assign(guesses: np.ndarray, labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the class of each label that makes most guesses right, one label for a class.

    Args:
        guesses: class with the highest score [n].
        labels: [n].
        shape: number of labels, and of classes, which are at least as many.
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros(shape)
    np.add.at(counts, (labels, guesses), 1)
    # Of equal assignments, that which leaves labels as they are.
    counts[np.arange(shape[0]), np.arange(shape[0])] += 1e-6
    return np.asarray(linear_sum_assignment(counts, maximize=True)[1])


def _label_order(
    name: str,
    order: np.ndarray,
    new: np.ndarray,
    old: np.ndarray,
    classes: Sequence[str] | None,
) -> LabelOrder:
    used = order[: len(classes)] if classes else order
    return LabelOrder(
        name=name,
        samples=len(old),
        accuracy=100 * float(old.mean()),
        relabelled=100 * float(new.mean()),
        order=tuple(int(k) for k in used),
        classes=tuple(classes or ()),
    )
