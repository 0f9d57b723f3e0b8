"""Notes on the quality of calibration data: samples before the pass, values after it."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qtool.calibration.statistics import Stats
from qtool.data import Dataset
from qtool.graph.queries import by_name, readers

# Below so many samples the ranges depend on which ones were chosen.
FEW = 32
# Samples a class on average from which an uneven share is called out, and the smallest share of it.
EXPECTED, LEAST = 8, 0.25
# With fewer samples a class: standard deviations above chance from which absent classes are named.
DEVIATIONS = 3
# Samples from which half of them may be enough; largest change of a range that does not matter:
# by that much the rounding error grows by 0.4 dB.
MANY, SAME = 64, 0.05
# Share of the elements on each side that a range leaves out when ranges are compared.
TAIL = 1e-4
# Names that a note lists.
LISTED = 3
# Largest value of an input from which it looks like pixels, and that of pixels.
LARGE, PIXEL = 32.0, 255.0
# Operators that scale an input inside the network.
SCALING = {"Sub", "Mul", "Div", "Cast", "BatchNormalization", "LayerNormalization"}


def sample_notes(data: Dataset, outputs: int = 0) -> list[str]:
    """Return notes on calibration samples: few, repeated, or of few of the classes.

    Args:
        data: the calibration samples; their labels, where there are any, are only counted.
        outputs: classes that the network has scores for; 0: it has no class scores.
    """
    notes = []
    if data.count < FEW:
        notes.append(
            f"{data.count} calibration samples: with fewer than {FEW} the ranges depend on which "
            "ones they are; 256 are enough for most networks"
        )
    counts = Counter(data.digests())
    repeated = data.count - len(counts)
    if repeated:
        first = next(n for n, d in zip(data.names, data.digests(), strict=True) if counts[d] > 1)
        notes.append(
            f"WARNING: {repeated} of {data.count} calibration samples repeat another one (first: "
            f"{first}); they add nothing to the ranges: remove them"
        )
    return notes + _class_notes(data, outputs)


def _class_notes(data: Dataset, outputs: int) -> list[str]:
    labels, names = data.labels, data.classes or ()
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        return []
    # The last classes may have no sample at all, which the labels themselves do not show.
    listed = max(len(names), outputs)
    classes = max(int(labels.max()) + 1, listed)
    expected = data.count / classes
    has_many = expected >= EXPECTED
    if classes < 2 or not (has_many or classes == listed):
        return []  # perhaps these are numbers, not classes
    counts = np.bincount(labels.astype(np.int64), minlength=classes)
    rare = np.flatnonzero(counts < (LEAST * expected if has_many else 1))
    by_chance = classes * np.exp(-expected)  # absent classes, were the samples drawn at random
    if len(rare) <= (0 if has_many else by_chance + DEVIATIONS * by_chance**0.5):
        return []
    share = f"fewer than {LEAST * expected:.0f}" if has_many else "none"
    shown = [names[k] if k < len(names) else f"class {k}" for k in rare]
    return [
        f"WARNING: {len(rare)} of {classes} classes have {share} of {data.count} calibration "
        f"samples ({_listed(shown)}): ranges are those of the others"
    ]


def value_notes(model: ir.Model, stats: Mapping[str, Stats]) -> list[str]:
    """Return notes on observed values: always 0, constant, or inputs that look unscaled.

    Args:
        model: the rewritten graph.
        stats: value name -> statistics of all calibration samples.
    """
    values, notes = by_name(model.graph), []
    computed = {n: s for n, s in stats.items() if values[n].producer() is not None}
    constant = {n: s.lo for n, s in computed.items() if s.lo == s.hi}
    dead = [name for name, value in constant.items() if value == 0]
    same = [f"{name} = {value:g}" for name, value in constant.items() if value != 0]
    if dead:
        notes.append(f"WARNING: always 0 on all calibration samples: {_listed(dead)}")
    if same:
        notes.append(f"WARNING: constant on all calibration samples: {_listed(same)}")
    for value in model.graph.inputs:
        part = stats.get(value.name or "")
        if part is None or part.lo < 0 or not LARGE < part.hi <= PIXEL:
            continue
        if not any(node.op_type in SCALING for node in readers(value)):
            notes.append(
                f'WARNING: the input "{value.name}" has values from {part.lo:g} to {part.hi:g}, as '
                "pixels have, and the network does not scale them first; most networks are trained "
                "on values around 0: check preprocess, or divide the arrays by 255"
            )
    return notes


def half_notes(
    stats: Mapping[str, Stats], early: Mapping[str, Stats], half: int, count: int
) -> list[str]:
    """Return a note where the first half of the samples gives the ranges of all of them.

    Args:
        stats: value name -> statistics of all samples.
        early: of the first ``half`` samples; values that are missing or empty count as equal.
        half: samples.
        count: all samples.
    """
    if count < MANY or half < FEW:
        return []
    for name, part in early.items():
        if part.lo > part.hi:
            continue
        (low, high), (low_all, high_all) = _range(part), _range(stats[name])
        if max(abs(low - low_all), abs(high - high_all)) > SAME * (high_all - low_all):
            return []
    return [
        f"{half} of the {count} calibration samples would have been enough: they give every range "
        f"within {SAME:.0%}"
    ]


def _range(stats: Stats) -> tuple[float, float]:
    """Return the limits without the outermost elements; all elements where none is counted."""
    if not len(stats.histogram):
        return stats.lo, stats.hi
    edges, counts = stats.bins
    shares = np.cumsum(counts) / counts.sum()
    low = edges[np.searchsorted(shares, TAIL, "right")]
    high = edges[1 + np.searchsorted(shares, 1 - TAIL)]
    return float(low), float(high)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
