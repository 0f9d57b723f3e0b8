"""Correct the gain and the mean of every output channel through weight scales and biases."""

from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.graph.queries import by_name
from qtool.ptq.channel_affine import ChannelAffine, OutputMoments, has_free_scales, output_moments
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context
from qtool.steps.layerwise import LayerwiseRun
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
            context: the ``fit`` samples are read.
        """
        values, uses = by_name(context.model.graph), plan.weight_uses()
        layers = channels = 0
        with LayerwiseRun(context, plan, "channel_affine_compensation") as run:
            for site in run.sites():
                if site.bias not in values or uses[site.bias or ""] > 1:
                    continue
                outputs = output_moments(run, site)
                if outputs is None:
                    continue
                free = uses[site.weight or ""] == 1 and has_free_scales(run.plan, site)
                gain = _gain(outputs, self.limit) if free else np.ones_like(outputs.mean_float)
                change = ChannelAffine(gain, outputs.mean_float - gain * outputs.mean)
                run.plan = change.applied(run.plan, site, values)
                layers, channels = layers + 1, channels + change.channels
        note = (
            f"{layers} layers compensated on {run.dataset.count} samples, the gain of {channels} "
            "channels"
        )
        return StepResult(run.plan, (note,), {"layers": layers, "channels": channels})


def _gain(outputs: OutputMoments, limit: float) -> np.ndarray:
    """Return cov / var; 1 where nothing varies or the gain is beyond the limit."""
    alive = outputs.variance > 0
    gain = np.where(alive, outputs.covariance / np.where(alive, outputs.variance, 1.0), 1.0)
    return np.where((gain <= limit) & (gain >= 1 / limit), gain, 1.0)
