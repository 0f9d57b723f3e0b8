"""Give every channel the mean and deviation of its BatchNorm again, in the quantized network."""

from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.calibration.estimators.batchnorm import channel_normals
from qtool.calibration.statistics import ChannelNormals
from qtool.errors import RecipeError
from qtool.graph.queries import nodes_by_name
from qtool.ptq.channel_affine import ChannelAffine, OutputMoments, compensate
from qtool.quant.plan import QuantPlan, Site
from qtool.steps.context import Context
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class BatchNormReestimation:
    """Estimate the statistics of every BatchNorm again in the quantized network, and fold them.

    Layer by layer, with the layers before it quantized and estimated again; y is the output of a
    layer into which a BatchNorm with parameters gamma and beta was folded, before the activation
    function, over samples and positions::

        g[c] = |gamma[c]| / std(y_q[c])
        s[c] <- g[c] s[c],   b[c] <- g[c] b[c] + beta[c] - g[c] mean(y_q[c])

    which is the BatchNorm with the mean and variance of its input as they are now. The codes stay.
    g stays 1 where `channel_affine_compensation` keeps it. That step compares with the float
    network sample by sample; this one needs only distributions. No labels are read.

    Args:
        limit: of g and of 1 / g; a channel beyond it, or one that is constant, stays as it is.

    Source: Hubara et al. 2020, sec. 5 (para-normalization), arXiv:2006.10518; Nagel et al. 2022,
        sec. 5.2, arXiv:2203.11086.
    """

    limit: float = Field(default=2.0, gt=1, allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with changed scales and biases.

        Args:
            plan: every grid is calibrated.
            context: the samples are read.

        Raises:
            RecipeError: no BatchNorm was folded into a layer.
        """
        nodes = nodes_by_name(context.model.graph)
        normals = {
            name: norm
            for name, node in nodes.items()
            if (norm := channel_normals(node.outputs[0])) is not None
        }
        if not normals:
            raise RecipeError(
                "ptq: batchnorm_reestimation reads the BatchNorm behind each layer, and this model "
                "has none that was folded into a layer; use channel_affine_compensation, which "
                "compares with the float network instead"
            )

        def change(site: Site, outputs: OutputMoments, free: bool) -> ChannelAffine:
            return self._change(normals[site.name], outputs, free)

        name, layers = "batchnorm_reestimation", normals.keys()
        done = compensate(plan, context, name, repr(self), layers, change)
        return done.result(
            f"the BatchNorm of {done.layers} layers estimated again on {done.samples} samples, the "
            f"deviation of {done.channels} channels"
        )

    def _change(self, norm: ChannelNormals, outputs: OutputMoments, free: bool) -> ChannelAffine:
        """Return the BatchNorm with the moments of its input as they are now."""
        deviation = np.sqrt(outputs.variance)
        usable = (deviation > norm.std / self.limit) & (deviation < norm.std * self.limit)
        gain = np.where(usable & free, norm.std / np.where(usable, deviation, 1.0), 1.0)
        return ChannelAffine(gain, np.where(usable, norm.mean - gain * outputs.mean, 0.0))
