"""Metrics of class scores: the label's rank, macro F1, intersection over union."""

from collections.abc import Sequence

import numpy as np

from qtool.errors import DataError

IGNORED = 255
"""The class number of pixels that do not count, where there are fewer classes."""


def top_k(outputs: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Score 1 where the label is among the k highest outputs, else 0; equal outputs rank by index.

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
    scores = classes_last(outputs)
    check_class_labels(scores, labels, k)
    index = labels.astype(np.int64)
    own = np.take_along_axis(scores, index[:, None], axis=1)
    before = np.arange(scores.shape[1]) < index[:, None]
    ahead = (scores > own) | ((scores == own) & before)
    return (ahead.sum(axis=1) < k).astype(np.float64)


def expected_top_k(outputs: np.ndarray, probabilities: np.ndarray, k: int) -> np.ndarray:
    """Return the chance that the label is among the k highest outputs; equal ones rank by index.

    Args:
        outputs: [N, classes]; trailing axes of length 1 are ignored.
        probabilities: of each class to be the label, [N, classes].
        k: how many guesses count.
    """
    highest = np.argsort(-classes_last(outputs), axis=1, kind="stable")[:, :k]
    return np.asarray(np.take_along_axis(probabilities, highest, axis=1).sum(axis=1))


def classes_last(outputs: np.ndarray) -> np.ndarray:
    """Reshape outputs to [N, classes], without trailing axes of length 1.

    Raises:
        DataError: they are no class scores.
    """
    check_scores_shape(outputs.shape)
    return outputs.reshape(outputs.shape[:2])


def check_scores_shape(shape: Sequence[int | str | None]) -> None:
    """Refuse an output that holds no class scores; cheap enough to check before a run.

    Args:
        shape: of the model's first output; sizes that are no numbers are unknown.

    Raises:
        DataError: it is not [N, classes], also with axes of size 1 behind.
    """
    behind = [size for size in shape[2:] if isinstance(size, int)]
    if len(shape) < 2 or shape[1] in (0, 1) or any(size != 1 for size in behind):
        shown = ", ".join("?" if size is None else str(size) for size in shape)
        raise DataError(
            f"the model's first output has shape [{shown}]; expected [N, classes] with at least 2 "
            "classes: give a `metric` that fits it (cosine and sqnr compare with the float model), "
            "or leave out the labels"
        )


def check_class_labels(outputs: np.ndarray, labels: np.ndarray, k: int) -> None:
    """Refuse labels that do not fit the outputs, and outputs that cannot be ranked.

    Args:
        outputs: [N, classes].
        labels: class numbers [N].
        k: how many guesses count.

    Raises:
        DataError: names what does not fit.
    """
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
    check_label_range(labels, classes)
    bad = np.isnan(outputs).any(axis=1)
    if bad.any():
        raise DataError(
            f"the model's first output is NaN for {int(bad.sum())} of {count} samples (first: "
            f"row {int(np.argmax(bad))}); expected numbers: check the model in float first"
        )


def check_label_range(labels: np.ndarray, classes: int) -> None:
    """Refuse class numbers that the model does not have; cheap enough to check before a run.

    Args:
        labels: whole numbers [N].
        classes: how many the model's first output has.

    Raises:
        DataError: labels lie outside 0..classes - 1; names how many, and their range.
    """
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} of {len(labels)} labels lie outside 0..{classes - 1} (found "
            f"{int(labels.min())}..{int(labels.max())}), but the model's first output has "
            f"{classes} classes: number the classes from 0, or give `labels` that fit the model"
        )


def class_pairs(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the label and the highest output of each sample, int64 [N, 2].

    Args:
        outputs: [N, classes]; trailing axes of length 1 are ignored.
        labels: integers [N], from 0 to classes - 1.

    Raises:
        DataError: as for :func:`top_k`.
    """
    scores = classes_last(outputs)
    check_class_labels(scores, labels, 1)
    return np.stack([labels.astype(np.int64), scores.argmax(axis=1)], axis=1)


def macro_f1(pairs: np.ndarray, weights: np.ndarray) -> float:
    """Compute macro F1 from 0 to 1; classes that never occur are left out.

    mean over classes of 2 TP / (2 TP + FP + FN)

    Args:
        pairs: see :func:`class_pairs`.
        weights: how often each sample counts, [N].
    """
    classes = int(pairs.max()) + 1
    label, guess = (np.bincount(pairs[:, k], weights, classes) for k in (0, 1))
    right = pairs[:, 0] == pairs[:, 1]
    hits = np.bincount(pairs[right, 0], weights[right], classes)
    seen = label + guess > 0
    return float(np.mean(2 * hits[seen] / (label + guess)[seen]))


def overlaps(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count the pixels of each class in both maps, then in either map, float64 [N, 2 classes].

    Args:
        outputs: [N, classes, ...], the highest wins.
        labels: class numbers [N, ...]; negative numbers, and 255 where there are no so many
            classes, do not count.

    Raises:
        DataError: the shapes or the label range do not fit, or an output is NaN.
    """
    if outputs.ndim < 3 or outputs.shape[1] < 2:
        raise DataError(
            f"the model's first output has shape {list(outputs.shape)}; expected class scores "
            "[N, classes, height, width] for miou: use another metric, or export the model "
            "without its argmax"
        )
    count, classes = outputs.shape[:2]
    if labels.shape != (count, *outputs.shape[2:]) or labels.dtype.kind not in "iu":
        raise DataError(
            f"the labels are {labels.dtype} {list(labels.shape)}; expected whole class numbers "
            f"{[count, *outputs.shape[2:]]}, one for each pixel of the model's first output: "
            "resize the label maps to the output"
        )
    if np.isnan(outputs).any():
        raise DataError("the model's first output holds NaN; expected numbers: check the model")
    counted = (labels >= 0) & ~((labels == IGNORED) & (classes <= IGNORED))
    if (labels[counted] >= classes).any():
        raise DataError(
            f"the label maps go up to {int(labels[counted].max())}, but the model's first output "
            f"has {classes} classes; expected 0..{classes - 1}, 255 for pixels that do not count"
        )
    pixels = np.empty((count, 2 * classes))
    for row, (guess, label, where) in enumerate(
        zip(outputs.argmax(axis=1), labels, counted, strict=True)
    ):
        guess, label = guess[where], label[where].astype(np.int64)
        both = np.bincount(label[guess == label], minlength=classes)
        either = np.bincount(label, minlength=classes) + np.bincount(guess, minlength=classes)
        pixels[row] = np.concatenate([both, either - both])
    return pixels


def mean_iou(pixels: np.ndarray, weights: np.ndarray) -> float:
    """Compute the mean intersection over union, from 0 to 1.

    mean over the classes that occur of pixels in both maps / pixels in either

    Args:
        pixels: see :func:`overlaps`; all samples' pixels are pooled.
        weights: how often each sample counts, [N].
    """
    both, either = np.split(weights @ pixels, 2)
    seen = either > 0
    return float(np.mean(both[seen] / either[seen])) if seen.any() else float("nan")
