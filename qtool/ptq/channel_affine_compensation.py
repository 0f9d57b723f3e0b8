"""Correct the gain and the mean of every output channel through weight scales and biases."""

from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.channel_affine import ChannelAffine, OutputMoments, compensate
from qtool.quant.plan import QuantPlan, Site
from qtool.steps.context import Context
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class ChannelAffineCompensation:
    """Correct gain and mean of every output channel (CWAC of QwT-v2), at no cost at run time.

    Layer by layer, with the layers before it quantized and compensated; y is the output before the
    activation function, over samples and positions::

        g[c] = cov(y_float[c], y_q[c]) / var(y_q[c])
        s[c] <- g[c] s[c],   b[c] <- g[c] b[c] + mean(y_float[c]) - g[c] mean(y_q[c])

    s is the scale of the channel's weights, whose codes stay. g stays 1 where weights have one
    scale for all channels, a code book, blocks, a fixed form of scale (`bits.scale`) or several
    layers that read them: there this is `bias_correction`. No labels are read.

    Args:
        limit: of g and of 1 / g; a channel beyond it keeps its gain.

    Source: Tang et al. 2025, "QwT-v2", sec. 3, arXiv:2505.20932.
    Departure: every layer is compensated, and g is folded into scales; the paper adds a multiply
        and an add behind each block.
    """

    limit: float = Field(default=2.0, gt=1, allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with changed scales and biases.

        Args:
            plan: every grid is calibrated.
            context: the samples are read.
        """
        name, layers = "channel_affine_compensation", plan.sites.keys()
        done = compensate(plan, context, name, repr(self), layers, self._change)
        return done.result(
            f"{done.layers} layers compensated on {done.samples} samples, the gain of "
            f"{done.channels} channels"
        )

    def _change(self, site: Site, outputs: OutputMoments, free: bool) -> ChannelAffine:
        """Return the regression of the float outputs on the quantized ones."""
        gain = _gain(outputs, self.limit) if free else np.ones_like(outputs.mean_float)
        return ChannelAffine(gain, outputs.mean_float - gain * outputs.mean)


def _gain(outputs: OutputMoments, limit: float) -> np.ndarray:
    """Return cov / var; 1 where nothing varies or the gain is beyond the limit."""
    alive = outputs.variance > 0
    gain = np.where(alive, outputs.covariance / np.where(alive, outputs.variance, 1.0), 1.0)
    return np.where((gain <= limit) & (gain >= 1 / limit), gain, 1.0)
