"""Word error rate: the fewest edits from the output's tokens to the label's."""

import numpy as np

from qtool.errors import DataError


def word_errors(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count the edits and the reference words of each sample, float64 [N, 2].

    Args:
        outputs: token ids [N, T], decoded by the model; negative ids are padding.
        labels: token ids [N, L]; negative ids are padding.

    Raises:
        DataError: either is no table of whole numbers.
    """
    for what, ids in (("model's first output", outputs), ("labels", labels)):
        whole = ids.dtype.kind in "iu" or bool(np.all(ids == np.round(ids)))
        if ids.ndim != 2 or not whole:
            raise DataError(
                f"the {what}: found {ids.dtype} {list(ids.shape)}, expected token ids "
                "[N, length] for wer, padded with -1: decode in the model"
            )
    if len(outputs) != len(labels):
        raise DataError(
            f"the labels have {len(labels)} rows; expected {len(outputs)}, one per sample"
        )
    rows = []
    for guess, label in zip(outputs, labels, strict=True):
        label = label[label >= 0]
        rows.append((edit_distance(label, guess[guess >= 0]), len(label)))
    return np.array(rows, np.float64).reshape(-1, 2)


def edit_distance(first: np.ndarray, second: np.ndarray) -> int:
    """Count the fewest insertions, deletions and substitutions between two sequences.

    Args:
        first: token ids [N].
        second: token ids [M].

    Source: Wagner and Fischer 1974, "The String-to-String Correction Problem", J. ACM 21(1),
        doi:10.1145/321796.321811.
    """
    steps = np.arange(len(second) + 1)
    row = steps
    for number, token in enumerate(first, start=1):
        best = np.empty_like(row)
        best[0] = number
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (second != token))
        # an insertion costs 1 a step: the smallest best[j] + (k - j) for j <= k
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def error_rate(counts: np.ndarray, weights: np.ndarray) -> float:
    """Compute the word error rate: all edits / all reference words.

    Args:
        counts: see :func:`word_errors`.
        weights: how often each sample counts, [N].
    """
    edits, words = weights @ counts
    return float(edits / words) if words else float("nan")
