"""Add up, batch by batch, the noise of a layer and the values that it reads."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qtool.calibration.statistics import Stats, summarize
from qtool.metrics.fidelity import power_db
from qtool.quant.primitives import QuantParams

if TYPE_CHECKING:
    import torch


@dataclass
class Noise:
    """Power of a layer's float output, and of its difference to the quantized layer."""

    signal: float = 0.0
    noise: float = 0.0

    @property
    def db(self) -> float | None:
        """Signal to noise in dB; None where there is no noise or no signal."""
        return power_db(self.signal, self.noise)

    def add(self, expected: "torch.Tensor", output: "torch.Tensor") -> None:
        """Add the powers of one batch."""
        self.signal += float(expected.double().square().sum())
        self.noise += float((expected - output).double().square().sum())


@dataclass
class InputValues:
    """Float values of one activation over several batches.

    Attributes:
        params: the grid.
        axis: of the channels.
        stats: histogram and limits.
        channels: largest magnitude of each channel; empty before the first batch.
        outside: values that the grid cuts off.
        count: values in all.
    """

    params: QuantParams
    axis: int
    stats: Stats = field(default_factory=Stats)
    channels: np.ndarray = field(default_factory=lambda: np.zeros(0))
    outside: int = 0
    count: int = 0

    def add(self, values: np.ndarray) -> None:
        """Add one batch.

        Args:
            values: float, samples first.
        """
        if values.size == 0:
            return
        self.stats += summarize(values, histogram=True, seed=self.count)
        low, high = self.params.lo.min(), self.params.hi.max()
        half = 0.5 * float(self.params.scale.max())  # values so near round to the last code
        self.outside += int(((values < low - half) | (values > high + half)).sum())
        self.count += values.size
        axis = self.axis % values.ndim
        limits = np.abs(values).max(axis=tuple(k for k in range(values.ndim) if k != axis))
        same = len(self.channels) == len(limits)
        self.channels = np.maximum(self.channels, limits) if same else limits


@dataclass
class LayerMeasure:
    """Measurements of one layer.

    Attributes:
        alone: noise of the layer on its exact float input.
        cumulative: noise at its output with all layers before it quantized.
        values: the float values that it reads; None where its input has no grid.
    """

    alone: Noise = field(default_factory=Noise)
    cumulative: Noise = field(default_factory=Noise)
    values: InputValues | None = None


def channel_axis(op: str) -> int:
    """Return the axis of a layer's input that counts channels.

    Args:
        op: the layer's operator; convolutions have channels second, products of matrices last.
    """
    return 1 if op.startswith("Conv") else -1
