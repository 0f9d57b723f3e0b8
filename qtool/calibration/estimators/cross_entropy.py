"""Cross-entropy calibration: the range of the logits that preserves the class probabilities."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.estimators.mse import MSE
from qtool.calibration.range_search import search_range
from qtool.calibration.statistics import Calibrator, Stats
from qtool.quant.primitives import QuantParams, QuantSpec, fake_quantize


@dataclass(frozen=True)
class CrossEntropy(Calibrator):
    """Preserve the class probabilities of the last layer; other values by least squared error.

    minimize over lo, hi: -mean_n sum_k softmax(v_n)_k ln softmax(fake_quantize(v_n; lo, hi))_k

    v are the network's outputs [N, C] that have a grid, on up to 256 samples. Small scores of
    unlikely classes may be clipped; the order of the likely ones counts. Where no such output has
    a grid, as on runtimes that return floats, it is refused. It is not defined for weights.

    Args:
        candidates: factors tried per search, from 1 down to 1 / candidates.
    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", sec. 3.1, eq. 16,
        arXiv:2106.08295.
    """

    by_output: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True
    _: KW_ONLY
    candidates: int = Field(default=100, ge=2)

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid of least cross-entropy, or of least squared error without scores."""
        if not len(stats.scores.rows):
            return MSE(candidates=self.candidates)(stats, spec)
        return search_range(stats, spec, cross_entropy(stats.scores.rows), self.candidates)


def cross_entropy(scores: np.ndarray) -> Callable[[QuantParams], float]:
    """Return a function that computes the mean cross-entropy of rounded scores.

    Args:
        scores: logits, [N, C].

    Returns:
        The function; at least the mean entropy of softmax(scores), which exact scores have.
    """
    exact = scores.astype(np.float64)
    probabilities = np.exp(_log_softmax(exact))

    def score(params: QuantParams) -> float:
        logs = _log_softmax(fake_quantize(exact, params))
        return float(-np.mean(np.sum(probabilities * logs, 1)))

    return score


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
