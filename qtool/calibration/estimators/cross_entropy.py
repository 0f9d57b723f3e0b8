"""Cross-entropy calibration: the range of the logits that preserves the class probabilities."""

from dataclasses import KW_ONLY, replace
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
        return search_range(stats, spec, ScoreCrossEntropy(stats.scores.rows), self.candidates)


class ScoreCrossEntropy:
    """The mean cross-entropy of rounded class scores: at least the mean entropy of exact ones."""

    def __init__(self, scores: np.ndarray) -> None:
        """Compute the exact probabilities.

        Args:
            scores: logits, [N, C].
        """
        self._exact = scores.astype(np.float64)
        self._probabilities = np.exp(_log_softmax(self._exact))

    def __call__(self, params: QuantParams) -> np.ndarray:
        """Return the cross-entropy under each grid."""
        errors = [
            self._one(replace(params, scale=np.asarray(scale), zero_point=np.asarray(zero)))
            for scale, zero in zip(params.scale.flat, params.zero_point.flat, strict=True)
        ]
        return np.reshape(errors, params.scale.shape)

    def at_least(self, params: QuantParams) -> np.ndarray:
        """Return 0: no grid is ruled out."""
        return np.zeros(params.scale.shape)

    def _one(self, params: QuantParams) -> float:
        logs = _log_softmax(fake_quantize(self._exact, params))
        return float(-np.mean(np.sum(self._probabilities * logs, 1)))


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
