"""How good outputs are: per-sample scores, their paired difference, agreement and noise.

Every metric judges the model's first output.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from qtool.errors import DataError

Z95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Metric:
    """A named way to score outputs.

    Attributes:
        help: one line for the list of metrics.
        unit: what the mean of the scores is given in; "%" means times 100.
        scores: (outputs [N, classes], labels [N]) -> float64 [N], one score per sample.
    """

    help: str
    unit: str
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray]


def top_k(outputs: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """1 where the label is among the k highest outputs, else 0; equal outputs rank by index.

    Args:
        outputs: [N, classes]; trailing axes of length 1 are ignored.
        labels: integers [N], from 0 to classes - 1.
        k: how many guesses count.

    Returns:
        Scores float64 [N].

    Raises:
        DataError: the shapes, the label range or the number of classes do not fit, or an output
            is NaN.
    """
    scores = _classes_last(outputs)
    _check(scores, labels, k)
    index = labels.astype(np.int64)
    own = np.take_along_axis(scores, index[:, None], axis=1)
    before = np.arange(scores.shape[1]) < index[:, None]
    ahead = (scores > own) | ((scores == own) & before)
    return (ahead.sum(axis=1) < k).astype(np.float64)


def _classes_last(outputs: np.ndarray) -> np.ndarray:
    """Outputs as [N, classes], without trailing axes of length 1."""
    if outputs.ndim > 2 and all(size == 1 for size in outputs.shape[2:]):
        outputs = outputs.reshape(outputs.shape[:2])
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise DataError(
            f"the model's first output has shape {list(outputs.shape)}; expected [N, classes] with "
            "at least 2 classes: class metrics cannot judge it; leave out `evaluate` labels"
        )
    return outputs


def _check(outputs: np.ndarray, labels: np.ndarray, k: int) -> None:
    """Refuse labels that do not fit the outputs, and outputs that cannot be ranked."""
    count, classes = outputs.shape
    if classes <= k > 1:
        raise DataError(
            f"top{k} on an output of {classes} classes is always right; expected more than {k} "
            "classes: use `metric: top1`"
        )
    if labels.shape != (count,):
        remedy = "take the argmax of one-hot labels" if labels.ndim == 2 else "check the labels"
        raise DataError(
            f"the labels have shape {list(labels.shape)}; expected [{count}], one class number "
            f"per sample: {remedy}"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"the labels are {labels.dtype}; expected whole class numbers: save them as int64"
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} of {count} labels lie outside 0..{classes - 1} (found "
            f"{int(labels.min())}..{int(labels.max())}), but the model's first output has "
            f"{classes} classes: number the classes from 0, or give `labels` that fit the model"
        )
    bad = np.isnan(outputs).any(axis=1)
    if bad.any():
        raise DataError(
            f"the model's first output is NaN for {int(bad.sum())} of {count} samples (first: "
            f"row {int(np.argmax(bad))}); expected numbers: check the model in float first"
        )


METRICS: dict[str, Metric] = {
    "top1": Metric("the highest output is the label", "%", partial(top_k, k=1)),
    "top5": Metric("the label is among the five highest outputs", "%", partial(top_k, k=5)),
    "accuracy": Metric("the same as top1", "%", partial(top_k, k=1)),
}


def paired_interval(
    float_scores: np.ndarray, quant_scores: np.ndarray
) -> tuple[float, float, float]:
    """The drop from float to quantized scores and its 95 % interval, in percentage points.

    With b samples right only in float and c right only quantized, of n, the drop is (b - c) / n.
    The interval is centred on d = (b - c) / (n + 2), with half-width
    z * sqrt((p + q - d^2) / (n + 2)), p = (b + 1) / (n + 2), q = (c + 1) / (n + 2). It keeps its
    coverage for few samples and has a width where b = c = 0; it is cut at -100 and 100 and widened
    to hold the drop itself.

    Args:
        float_scores: 0 or 1 for each sample, [n].
        quant_scores: the same samples' scores after quantization, [n].

    Returns:
        (drop, lo, hi); positive means quantization lost accuracy.

    Raises:
        ValueError: the scores are not of one length, not 0 or 1, or there are none.

    Source: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data", J. Educ. Behav. Stat. 37(4),
        doi:10.3102/1076998611411915.
        Departure: the cut, and the widening (it matters for n below about 10 only).
    """
    if float_scores.shape != quant_scores.shape or float_scores.ndim != 1:
        raise ValueError(f"scores have shapes {float_scores.shape}, {quant_scores.shape}")
    n = len(float_scores)
    if n == 0 or not np.isin([float_scores, quant_scores], (0, 1)).all():
        raise ValueError(f"expected at least one score, all 0 or 1; found {n}")
    b = int(np.sum(float_scores > quant_scores))
    c = int(np.sum(float_scores < quant_scores))
    p, q = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    drop = (b - c) / n
    lo = max(-1.0, min(p - q - half, drop))
    hi = min(1.0, max(p - q + half, drop))
    return 100 * drop, 100 * lo, 100 * hi


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """How often two models' highest output is the same class, in %.

    Args:
        first: [N, classes, ...]; further axes, such as pixels, count one by one.
        second: the same shape.

    Raises:
        DataError: there are fewer than two classes to choose from.
        ValueError: the shapes differ, or there is no sample.
    """
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"outputs have shapes {first.shape} and {second.shape}")
    if first.ndim < 2 or first.shape[1] < 2:
        raise DataError(
            f"the model's first output has shape {list(first.shape)}; expected [N, classes, ...] "
            "with at least 2 classes: agreement has no meaning for it"
        )
    return 100 * float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def sqnr_db(reference: np.ndarray, test: np.ndarray) -> float:
    """Signal to quantization noise, 10 log10(sum reference^2 / sum (reference - test)^2), in dB.

    Returns:
        inf where the two are equal; -inf where only the reference is all zero.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != test.shape:
        raise ValueError(f"arrays have shapes {reference.shape} and {test.shape}")
    signal = reference.astype(np.float64)
    noise = float(np.sum(np.square(signal - test)))
    power = float(np.sum(np.square(signal)))
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf
