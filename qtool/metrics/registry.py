"""The table of metrics, against labels or the float model, and the paired difference.

Every metric scores the model's first output.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from qtool.errors import DataError
from qtool.metrics.classification import (
    class_pairs,
    expected_top_k,
    macro_f1,
    mean_iou,
    overlaps,
    top_k,
)
from qtool.metrics.confidence import bootstrap_interval, paired_interval, share_interval
from qtool.metrics.detection import mean_average_precision
from qtool.metrics.fidelity import cosine, decibels, powers, sqnr_db
from qtool.metrics.image_quality import psnr, ssim
from qtool.metrics.word_error_rate import error_rate, word_errors
from qtool.user_code import guarded, is_function_name, load_function

__all__ = [
    "METRICS",
    "Metric",
    "MetricResult",
    "agreement",
    "custom_metric",
    "find_metric",
    "paired_interval",
    "score_outputs",
    "sqnr_db",
]

CHUNK = 1 << 24
"""Elements of the output that are scored at once."""

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
Total = Callable[[np.ndarray, np.ndarray], float]


def mean(scores: np.ndarray, weights: np.ndarray) -> float:
    """Compute the weighted mean of one score per sample.

    Args:
        scores: [N].
        weights: how often each sample counts, [N].
    """
    return float(weights @ scores / weights.sum())


@dataclass(frozen=True)
class Metric:
    """An entry of METRICS: the scores of outputs, and the value they add up to.

    A metric is ``total(scores(outputs, labels), ones)`` where samples can be scored one by one,
    else ``value(outputs, labels)``, which has no interval.

    Attributes:
        help: one line for the list of metrics.
        unit: of the value; "%" means times 100.
        scores: (outputs [N, ...], labels [N, ...]) -> the score of each sample, [N] or [N, K].
        total: (scores, how often each sample counts [N]) -> the value.
        value: (outputs, labels) -> the value, or scores [N]; in place of scores, all at once.
        expected: (outputs [N, classes], probabilities of the label [N, classes]) -> the expected
            score of each sample, [N]; None where there is none.
        lower_is_better: whether a smaller value is a better one.
        binary: whether scores are 0 or 1.
        classes: whether outputs are class scores [N, classes, ...], so that agreement has meaning.
        class_labels: whether labels are class numbers, one for each sample.
        majority_baseline: whether always naming one class scores the share of that class.
        needs_labels: whether it needs labels.
        reference: whether the float model's outputs take the labels' place.
    """

    help: str
    unit: str
    scores: Scores | None = None
    total: Total = mean
    value: Callable[[np.ndarray, np.ndarray], np.ndarray | float] | None = None
    expected: Scores | None = None
    lower_is_better: bool = False
    binary: bool = False
    classes: bool = False
    class_labels: bool = False
    majority_baseline: bool = False
    needs_labels: bool = True
    reference: bool = False

    def __post_init__(self) -> None:
        """Refuse a metric with both scores and a value, or with neither."""
        if (self.scores is None) is (self.value is None):
            raise TypeError("a metric has either scores or a value")


DEFAULT_METRIC = "top1"
"""The metric where there are labels and the recipe names none."""


def _top(help_text: str, k: int, majority_baseline: bool = False) -> Metric:
    return Metric(
        help_text,
        "%",
        scores=partial(top_k, k=k),
        expected=partial(expected_top_k, k=k),
        binary=True,
        classes=True,
        class_labels=True,
        majority_baseline=majority_baseline,
    )


METRICS: dict[str, Metric] = {
    "top1": _top("the highest output is the label", 1, majority_baseline=True),
    "top5": _top("the label is among the five highest outputs", 5),
    "accuracy": _top("the same as top1", 1, majority_baseline=True),
    "f1": Metric(
        "macro F1 of the highest output: the mean over classes",
        "%",
        class_pairs,
        macro_f1,
        classes=True,
        class_labels=True,
    ),
    "miou": Metric(
        "mean intersection over union of segmentation maps; 255 does not count",
        "%",
        overlaps,
        mean_iou,
        classes=True,
    ),
    "map": Metric(
        "COCO's AP of boxes [N, boxes, 6]: x1, y1, x2, y2, score, class; needs qtool[detection]",
        "%",
        value=mean_average_precision,
    ),
    "psnr": Metric("peak signal to noise against target images, uint8 or in 0..1", "dB", psnr),
    "ssim": Metric("structural similarity to target images, uint8 or in 0..1", "%", ssim),
    "wer": Metric(
        "word error rate of token ids, padded with -1; less is better",
        "%",
        word_errors,
        error_rate,
        lower_is_better=True,
    ),
    "cosine": Metric(
        "cosine between the outputs and the float model's; needs no labels",
        "%",
        cosine,
        needs_labels=False,
        reference=True,
    ),
    "sqnr": Metric(
        "the float model's signal over what differs from it; needs no labels",
        "dB",
        powers,
        decibels,
        needs_labels=False,
        reference=True,
    ),
}


def custom_metric(name: str, folder: str | None, trust_code: bool) -> Metric:
    """Make a metric of the user's function: it returns one score, or one per sample.

    It is called as ``function(outputs, labels)``; ``labels`` is None where there are none. Its
    attributes ``unit`` and ``lower_is_better``, where it has them, describe the value.

    Args:
        name: ``module:function``.
        folder: looked into before sys.path.
        trust_code: whether the user gave ``--trust-code``.

    Raises:
        RecipeError: the code is not trusted.
        DataError: there is no such function.
    """
    function = load_function(name, folder, trusted=trust_code, key="evaluate.metric")
    where = f"evaluate.metric: {name}"

    def value(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with guarded(where):
            result = np.asarray(function(outputs, labels), np.float64)
        finite = np.isfinite(result)
        if result.shape not in ((), (len(outputs),)) or not finite.all():
            raise DataError(
                f"{where}: gave {list(result.shape)}, {finite.sum()} of {result.size} "
                f"finite; expected one finite number, or [{len(outputs)}], one per sample"
            )
        return result

    return Metric(
        f"{name}, your own",
        str(getattr(function, "unit", "")),
        value=value,
        needs_labels=False,
        lower_is_better=bool(getattr(function, "lower_is_better", False)),
    )


def find_metric(name: str, folder: str | None, trust_code: bool) -> Metric:
    """Return the metric that a recipe names.

    Args:
        name: of METRICS, or ``module:function``.
        folder: see :func:`custom_metric`.
        trust_code: see :func:`custom_metric`.

    Raises:
        RecipeError: the code is not trusted.
        DataError: there is no such function.
    """
    return custom_metric(name, folder, trust_code) if is_function_name(name) else METRICS[name]


@dataclass(frozen=True)
class MetricResult:
    """The values of one metric for several models.

    Attributes:
        values: model to value, in the metric's unit; infinite ones are left out.
        drop: the loss of the quantized file against float; positive is worse.
        interval: the drop's 95 % interval, where it has one.
        quantized_interval: that of the quantized file's value, where it is a share of samples.
    """

    values: dict[str, float]
    drop: float | None
    interval: tuple[float, float] | None
    quantized_interval: tuple[float, float] | None = None


def score_outputs(
    metric: Metric, outputs: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> MetricResult:
    """Score several models' outputs of the same samples.

    Args:
        metric: the metric.
        outputs: model name to first output [N, ...]; at least "float" and "quantized".
        labels: [N, ...]; not used by metrics against the float model.

    Raises:
        DataError: outputs and labels do not fit the metric.
    """
    # Labels are None only for a metric of the user's own, whose function takes None.
    target = outputs["float"] if metric.reference else cast(np.ndarray, labels)
    scores = {name: _scored(metric, array, target) for name, array in outputs.items()}
    factor = 100.0 if metric.unit == "%" else 1.0
    sign = -1.0 if metric.lower_is_better else 1.0
    total = metric.total if metric.scores is not None else mean
    ones = np.ones(len(outputs["float"]))

    def value_of(scores: np.ndarray, weights: np.ndarray) -> float:
        return factor * (float(scores) if scores.ndim == 0 else total(scores, weights))

    values = {name: value_of(array, ones) for name, array in scores.items()}
    if any(math.isnan(value) for value in values.values()):
        raise DataError(
            "the metric is not a number (0 / 0); expected labels of at least one sample or pixel "
            "that counts: check them"
        )
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    if not {"float", "quantized"} <= set(finite):
        return MetricResult(finite, None, None)
    first, second = scores["float"], scores["quantized"]
    if metric.binary:
        drop, lo, hi = paired_interval(first, second)
        own = share_interval(finite["quantized"], len(second))
        return MetricResult(finite, drop, (lo, hi), own)
    drop = sign * (finite["float"] - finite["quantized"])
    if first.ndim == 0:
        return MetricResult(finite, drop, None)
    interval = bootstrap_interval(lambda array, w: sign * value_of(array, w), first, second)
    return MetricResult(finite, drop, interval)


def _scored(metric: Metric, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score all samples, a part at a time; or return the one value of a metric without scores."""
    if metric.value is not None:
        return np.asarray(metric.value(np.asarray(outputs), labels), np.float64)
    assert metric.scores is not None  # __post_init__ has checked it
    rows = max(1, CHUNK // max(1, outputs[:1].size))
    parts = [
        metric.scores(np.asarray(outputs[k : k + rows]), np.asarray(labels[k : k + rows]))
        for k in range(0, len(outputs), rows)
    ]
    return np.concatenate(parts)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Compute how often two models' highest output is the same class, in %.

    Args:
        first: [N, classes, ...], or class probabilities [N, ..., classes]; further axes, such as
            pixels or steps of a sequence, count one by one.
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
    axis = _class_axis(first)
    rows = max(1, CHUNK // first[:1].size)
    same = total = 0
    for k in range(0, len(first), rows):
        equal = first[k : k + rows].argmax(axis) == second[k : k + rows].argmax(axis)
        same, total = same + int(np.count_nonzero(equal)), total + equal.size
    return 100 * (same / total)


def _class_axis(outputs: np.ndarray) -> int:
    """Return the axis of the classes: the second, or the last where only it adds up to 1.

    Networks on sequences, such as recognizers of text, end in a Softmax over their last axis.
    """
    sample = np.asarray(outputs[:4], np.float64)
    add_up = [np.allclose(sample.sum(axis), 1, atol=1e-3) for axis in (1, -1)]
    return -1 if add_up == [False, True] else 1
