"""Compare the outputs of a changed network with those of the float network, with labels or not."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qtool.data import Dataset
from qtool.metrics.confidence import Z95
from qtool.metrics.registry import score_outputs
from qtool.search.expected_drop import ClassProbabilities
from qtool.steps.context import Context
from qtool.steps.distance import distance
from qtool.verification.accuracy import NamedMetric


@dataclass(frozen=True)
class Effect:
    """Difference to the float network on the samples of a scale.

    Attributes:
        kl: Kullback-Leibler divergence of the class scores, or the relative squared error of other
            outputs; see :func:`qtool.steps.distance.distance`.
        sqnr_db: signal to quantization noise at the output; None where nothing is lost.
        drop: of the task's metric, the expected one of accuracies
            (:meth:`qtool.search.expected_drop.ClassProbabilities.drop`); None without a metric.
        drop_error: standard error of the drop; None where it has none.
    """

    kl: float
    sqnr_db: float | None
    drop: float | None
    drop_error: float | None = None


@dataclass(frozen=True)
class Reference:
    """Outputs of the float network on some calibration samples, that changes are measured by.

    Attributes:
        context: the float network.
        dataset: calibration samples.
        metric: of the task; None: without drop.
    """

    context: Context
    dataset: Dataset
    metric: NamedMetric | None = None

    @cached_property
    def outputs(self) -> np.ndarray:
        """First output of the float network."""
        return self.context.outputs(self.dataset)

    def effect(self, outputs: np.ndarray) -> Effect:
        """Return how far outputs are from those of the float network.

        Args:
            outputs: of a changed network, for the same samples.
        """
        reference = self.outputs.astype(np.float64)
        noise = float(np.sum((reference - outputs) ** 2))
        power = float(np.sum(reference**2))
        sqnr = 10 * np.log10(power / noise) if noise > 0 and power > 0 else None
        drop, error = self._drop(outputs)
        return Effect(
            kl=max(0.0, distance(reference, outputs)),
            sqnr_db=None if sqnr is None else float(sqnr),
            drop=drop,
            drop_error=error,
        )

    def _drop(self, outputs: np.ndarray) -> tuple[float | None, float | None]:
        """Return the drop of the metric and its standard error."""
        if self.metric is None:
            return None, None
        metric = self.metric.metric
        if metric.expected is not None:
            return self._probabilities.drop(metric.expected, outputs)
        named = {"float": self.outputs, "quantized": outputs}
        result = score_outputs(metric, named, self.dataset.labels)
        if result.interval is None:
            return result.drop, None
        return result.drop, (result.interval[1] - result.interval[0]) / (2 * Z95)

    @cached_property
    def _probabilities(self) -> ClassProbabilities:
        return ClassProbabilities.of(self.outputs, self.dataset.labels)
