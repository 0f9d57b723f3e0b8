"""List the samples for which float model and file choose different classes."""

from collections.abc import Mapping

import numpy as np

from qtool.data import Dataset
from qtool.report.schema import Accuracy, ChangedSample
from qtool.verification.changes.thumbnails import thumbnails

# Samples that the report lists.
SHOWN_SAMPLES = 24


def with_changed_samples(
    accuracy: Accuracy, outputs: Mapping[str, np.ndarray], data: Dataset, images: int
) -> Accuracy:
    """Return the accuracy with the samples for which both choose different classes.

    Args:
        accuracy: of float model and file.
        outputs: "float" and "quantized" -> class scores; others change nothing.
        data: the evaluation samples, in the outputs' order.
        images: samples that are shown as small images.
    """
    before, after = (_class_scores(outputs[key]) for key in ("float", "quantized"))
    if accuracy.agreement is None or before is None or after is None:
        return accuracy
    changed = np.flatnonzero(before.argmax(1) != after.argmax(1))
    if not len(changed):
        return accuracy
    chosen, other = before[changed].argmax(1), after[changed].argmax(1)
    margins, margins_after = (
        scores[changed, chosen].astype(float) - scores[changed, other] for scores in (before, after)
    )
    labels = data.labels if data.labels is not None and data.labels.ndim == 1 else None
    lost = np.zeros(len(changed), bool) if labels is None else chosen == labels[changed]
    order = np.lexsort((changed, -margins, ~lost))[:SHOWN_SAMPLES]
    pictures = thumbnails(data, changed[order[:images]].tolist())

    classes = data.classes or ()

    def name(number: int) -> str:
        return classes[number] if 0 <= number < len(classes) else str(number)

    samples = [
        ChangedSample(
            name=data.names[changed[k]],
            label=None if labels is None else name(int(labels[changed[k]])),
            float=name(int(chosen[k])),
            quantized=name(int(other[k])),
            margin=_rounded(margins[k]),
            margin_after=_rounded(margins_after[k]),
            thumbnail=pictures[rank] if rank < len(pictures) else None,
        )
        for rank, k in enumerate(order)
    ]
    return accuracy.model_copy(update={"changed": len(changed), "changed_samples": samples})


def _class_scores(outputs: np.ndarray) -> np.ndarray | None:
    """Return outputs as [N, C]; None where there is not one class for a sample."""
    if outputs.ndim < 2 or outputs.shape[1] < 2 or outputs[:1].size != outputs.shape[1]:
        return None
    return np.asarray(outputs).reshape(len(outputs), -1)


def _rounded(value: float) -> float | None:
    """Return a number for a report; None for infinity and NaN, which JSON lacks."""
    return float(f"{value:.4g}") if np.isfinite(value) else None
