"""Estimate the drop of an accuracy from the float network's probabilities instead of labels."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from qtool.metrics.classification import check_class_labels, classes_last
from qtool.metrics.registry import Scores
from qtool.steps.distance import are_probabilities

LARGEST_TEMPERATURE = 10.0
# By how much the accuracy exceeds the mean probability of the chosen class where a network was made
# unsure, as by label smoothing: on calibration samples of EfficientNet-Lite0 to Lite2 0.16 to 0.31,
# of six other networks 0.06 at most (docs/budget.md).
UNSURE = 0.1
SMALLEST_TEMPERATURE = 0.3
SMALLEST_PROBABILITY = 1e-12
# Loss of one more sample, so that the error is not 0 where no class changed.
PRIOR_LOSS = 0.5


@dataclass(frozen=True)
class ClassProbabilities:
    """Probabilities of the label of each sample, by the float network.

    Attributes:
        outputs: of the float network, [N, C].
        probabilities: [N, C].
    """

    outputs: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of(cls, outputs: np.ndarray, labels: np.ndarray | None) -> "ClassProbabilities":
        """Return the softmax of class scores, calibrated where there are labels.

        The temperature T makes the labels most likely; it is 1 without labels::

            p_n = softmax(f_n / T),    T = argmin_(T >= T0) -mean_n log p_n[y_n]

        Source: Guo et al. 2017, sec. 4.2, arXiv:1706.04599.
        Departure: probabilities do not become sharper, T0 = 1: labels ask for that on samples that
            the network was trained on, and others do not bear it out. T0 is lower where the network
            is right far more often than it is sure: label smoothing makes it so (Mueller et al.
            2019, arXiv:1906.02629).

        Args:
            outputs: class scores or probabilities, [N, C] and axes of length 1.
            labels: class numbers [N], or None.

        Raises:
            DataError: there are no classes, or the labels do not fit them.
        """
        scores = classes_last(outputs).astype(np.float64)
        logs = scores
        if are_probabilities(scores):
            logs = np.log(np.clip(scores, SMALLEST_PROBABILITY, None))
        temperature = 1.0
        if labels is not None:
            check_class_labels(scores, labels, 1)
            temperature = _temperature(logs, labels.astype(np.int64))
        return cls(scores, softmax(logs / temperature, axis=1))

    def drop(self, expected: Scores, outputs: np.ndarray) -> tuple[float, float]:
        """Return the expected drop of an accuracy in points, and its standard error.

        Labels drawn from the probabilities p would give it as the mean of the paired hits of both
        networks. Their noise is gone, and only samples whose class changed count, each by how sure
        the float network was of its own class::

            loss_n = p_n[argmax f_n] - p_n[argmax q_n],    drop = 100 mean_n loss_n

        Over draws of 250 images, for files that lose 0 to 3 points, it deviates from their drop on
        other images by 0.3 to 0.9 points where paired hits deviate by 0.8 to 1.7 (docs/budget.md).

        Source: accuracy as a mean of confidences: Guillory et al. 2021, sec. 3, arXiv:2107.03315.
        Departure: the difference of two networks under the probabilities of one of them.

        Args:
            expected: of the metric, see :class:`qtool.metrics.registry.Metric`.
            outputs: of the changed network, [N, C].
        """
        chances = [expected(each, self.probabilities) for each in (self.outputs, outputs)]
        losses = chances[0] - chances[1]
        spread = np.sum((losses - losses.mean()) ** 2) + PRIOR_LOSS**2
        return 100 * float(losses.mean()), 100 * float(np.sqrt(spread)) / len(losses)


def _temperature(logs: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature under which labels are most likely; below 1 for unsure networks."""
    accuracy = float(np.mean(logs.argmax(1) == labels))
    is_unsure = accuracy - float(softmax(logs, axis=1).max(1).mean()) > UNSURE
    smallest = SMALLEST_TEMPERATURE if is_unsure else 1.0

    def loss(log_temperature: float) -> float:
        rows = log_softmax(logs / np.exp(log_temperature), axis=1)
        return -float(np.mean(np.take_along_axis(rows, labels[:, None], 1)))

    bounds = (np.log(smallest), np.log(LARGEST_TEMPERATURE))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
