"""Compare the outputs of a changed network with those of the float network, with labels or not."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qtool.data import Dataset
from qtool.metrics.registry import score_outputs
from qtool.steps.context import Context
from qtool.steps.distance import distance
from qtool.verification.accuracy import NamedMetric

# Half the width of a 95 % interval, in standard errors.
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Effect:
    """Difference to the float network on the samples of a scale.

    Attributes:
        kl: Kullback-Leibler divergence of the class scores, or the relative squared error of other
            outputs; see :func:`qtool.steps.distance.distance`.
        sqnr_db: signal to quantization noise at the output; None where nothing is lost.
        drop: of the task's metric; None without labels.
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
        drop = error = None
        if self.metric is not None:
            named = {"float": self.outputs, "quantized": outputs}
            result = score_outputs(self.metric.metric, named, self.dataset.labels)
            drop = result.drop
            if result.interval is not None:
                error = (result.interval[1] - result.interval[0]) / (2 * NORMAL_95)
        return Effect(
            kl=max(0.0, distance(reference, outputs)),
            sqnr_db=None if sqnr is None else float(sqnr),
            drop=None if drop is None else float(drop),
            drop_error=None if error is None else float(error),
        )
