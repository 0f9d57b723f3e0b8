"""BatchNorm calibration: ranges that the statistics inside the network state."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.statistics import Calibrator, ChannelNormals, Stats
from qtool.graph.queries import clip_limits
from qtool.quant.primitives import QuantParams, QuantSpec, params_from_range


@dataclass(frozen=True)
class BatchNorm(Calibrator):
    """Cover n standard deviations of every channel, by the BatchNorm in front of the value.

    lo = min_c (beta_c - n |gamma_c|), hi = max_c (beta_c + n |gamma_c|), limited by Relu or Clip

    No sample is read for these ranges, which may be wider than any value of the data. Values
    without a BatchNorm in front, such as the input, sums and logits, take the observed range. A
    model without BatchNorm is refused: one that was exported with BatchNorm folded has lost it.

    Args:
        deviations: n.
    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", sec. 5, arXiv:1906.04721.
    """

    needs_histogram: ClassVar[bool] = False
    needs_batchnorm: ClassVar[bool] = True
    _: KW_ONLY
    deviations: float = Field(default=6.0, gt=0, allow_inf_nan=False)

    def __call__(self, stats: Stats, spec: QuantSpec) -> QuantParams:
        """Return the grid over the ranges of all channels, widened to contain zero."""
        if not stats.normals:
            return params_from_range(stats.lo, stats.hi, spec)
        limits = [normal.limits(self.deviations) for normal in stats.normals]
        return params_from_range(min(lo for lo, _ in limits), max(hi for _, hi in limits), spec)


def channel_normals(value: ir.Value) -> ChannelNormals | None:
    """Return the distributions of a value's channels by the BatchNorm that was folded in front.

    Args:
        value: output of the layer that the BatchNorm was folded into, or of a Relu or Clip on it.

    Returns:
        The distributions; None where there is no BatchNorm directly in front.
    """
    lo, hi = -np.inf, np.inf
    node = value.producer()
    if node is not None and node.op_type in ("Relu", "Clip"):
        low, high = clip_limits(node)
        source = node.inputs[0]
        if low is None or high is None or source is None:
            return None
        lo, hi, value = low, high, source
    if (norm := value.meta.get("batchnorm")) is None:
        return None
    beta, gamma = (np.asarray(part, np.float64) for part in norm)
    return ChannelNormals(beta, np.abs(gamma), lo, hi)
