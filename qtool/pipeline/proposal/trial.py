"""Run a float model on labelled calibration samples, to compare ways of reading the data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.data import DataSection, Dataset, InputSpec, open_dataset
from qtool.data.inputs import fixed_batch
from qtool.data.source import per_sample
from qtool.errors import DataError, QtoolError
from qtool.runtime.ort_session import OrtSession

ROWS = 16


@dataclass(frozen=True)
class Trial:
    """Result of one way of reading the data.

    Attributes:
        section: of the recipe that was read.
        losses: cross-entropy of each sample [n]; None where there are no class labels.
        hits: whether the label had the highest output, for each sample [n]; None likewise.
        classes: number of the model's classes; None where the outputs are no class scores.
        labelled: whether the samples have labels, of any kind.
        error: why the model could not be run on the data; "" where it could.
    """

    section: Mapping[str, Any]
    losses: np.ndarray | None = None
    hits: np.ndarray | None = None
    classes: int | None = None
    labelled: bool = False
    error: str = ""

    @property
    def count(self) -> int:
        """Number of samples with a class label."""
        return 0 if self.hits is None else len(self.hits)

    @property
    def accuracy(self) -> float | None:
        """Top-1 in %, or None without class labels."""
        return None if self.hits is None else 100 * float(self.hits.mean())

    @property
    def beats_chance(self) -> bool:
        """True where so many hits have a probability below 0.001 among equally likely classes."""
        if self.hits is None or self.classes is None:
            return False
        from scipy.stats import binom

        return bool(binom.sf(self.hits.sum() - 1, self.count, 1 / self.classes) < 1e-3)


def difference(better: Trial, other: Trial) -> float:
    """Return the mean paired difference of losses, other - better, in standard errors."""
    if better.losses is None or other.losses is None:
        return 0.0
    with np.errstate(invalid="ignore"):  # of infinite losses
        gaps = other.losses - better.losses
        error = float(gaps.std() / np.sqrt(len(gaps)))
    return float(gaps.mean()) / error if error > 0 else (np.inf if gaps.mean() > 0 else 0.0)


def run_trial(
    session: OrtSession, inputs: Mapping[str, InputSpec], section: Mapping[str, Any], count: int
) -> Trial:
    """Run the model on at most ``count`` samples of a data section.

    Args:
        session: the float model.
        inputs: of the model.
        section: a data section of a recipe.
        count: samples, evenly spaced.
    """
    try:
        data = DataSection.model_validate({**section, "count": count})
        dataset = open_dataset(data, inputs)
        outputs = _outputs(session, inputs, dataset)
    except (QtoolError, ValueError) as error:
        return Trial(section, error=str(error).split("\n")[0])
    return _scored(section, outputs, dataset.labels)


def _outputs(session: OrtSession, inputs: Mapping[str, InputSpec], dataset: Dataset) -> np.ndarray:
    """Return the first output on all samples.

    Raises:
        DataError: ONNX Runtime cannot run the model on the samples.
    """
    fixed = fixed_batch(inputs.values())
    parts = []
    for batch, valid in dataset.calls(fixed or ROWS, fixed is not None):
        feeds = {name: batch[name] for name in inputs}
        try:
            parts.append(per_sample(session(feeds)[session.names[0]], valid, fixed))
        except Exception as error:  # the runtime raises one class per status
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise DataError(f"ONNX Runtime cannot run the model on {shapes}: {error}") from error
    return np.concatenate(parts)


def _scored(section: Mapping[str, Any], outputs: np.ndarray, labels: np.ndarray | None) -> Trial:
    """Return the trial with its losses, where outputs are class scores and labels their numbers."""
    scores = outputs.reshape(len(outputs), -1) if _are_scores(outputs) else None
    if labels is None or scores is None:
        return Trial(section, labelled=labels is not None)
    classes = scores.shape[1]
    numbers = labels.dtype.kind in "iu" and labels.ndim == 1
    if not numbers or labels.min() < 0 or labels.max() >= classes:
        return Trial(section, classes=classes, labelled=True)
    logits = scores.astype(np.float64)
    if logits.min() >= 0 and np.allclose(logits.sum(1), 1, atol=1e-3):
        logits = np.log(np.maximum(logits, 1e-12))  # the model ends in a Softmax
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(1, keepdims=True)
        total = np.log(np.exp(shifted).sum(1))
        losses = total - np.take_along_axis(shifted, labels[:, None].astype(np.int64), 1)[:, 0]
    losses[np.isnan(losses)] = np.inf  # the model overflows: the worst way to read the data
    return Trial(section, losses, scores.argmax(1) == labels, classes, True)


def _are_scores(outputs: np.ndarray) -> bool:
    """Return whether an output holds one row of class scores for each sample."""
    return outputs.ndim >= 2 and outputs.shape[1] > 1 and outputs[0].size == outputs.shape[1]
