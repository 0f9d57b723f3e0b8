"""Correct the gain and the mean of every output channel through weight scales and biases."""

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.graph.queries import by_name
from qtool.quant.chunked import codes_of
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import Codebook, PerChannel, QuantParams, dequantize
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
                outputs = _output_moments(run, site)
                if outputs is None:
                    continue
                free = uses[site.weight or ""] == 1 and _has_free_scales(run.plan, site)
                gain = outputs.gain(self.limit) if free else np.ones_like(outputs.mean_float)
                run.plan = _compensated(run.plan, site, values, outputs, gain)
                layers, channels = layers + 1, channels + int(np.sum(gain != 1))
        note = (
            f"{layers} layers compensated on {run.dataset.count} samples, the gain of {channels} "
            "channels"
        )
        return StepResult(run.plan, (note,), {"layers": layers, "channels": channels})


@plain_dataclass(frozen=True)
class _OutputMoments:
    """Moments of a layer's outputs per channel, float64 [C]."""

    mean_float: np.ndarray
    mean_quantized: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray

    def gain(self, limit: float) -> np.ndarray:
        """Return cov / var; 1 where nothing varies or the gain is beyond the limit."""
        alive = self.variance > 0
        gain = np.where(alive, self.covariance / np.where(alive, self.variance, 1.0), 1.0)
        return np.where((gain <= limit) & (gain >= 1 / limit), gain, 1.0)


def _output_moments(run: LayerwiseRun, site: Site) -> _OutputMoments | None:
    """Return the moments of a layer's outputs in both networks; None without rows."""
    axis = 1 if site.op == "Conv" else -1
    sums: list[torch.Tensor] = []
    shift, rows = torch.zeros(1), 0
    for pair in run.outputs(site):
        y_float, y = (part.movedim(axis, 0).flatten(1) for part in pair)
        if not rows:  # so that a variance is not the difference of two large numbers
            shift = y.mean(1, keepdim=True)
        y_float, y = y_float - shift, y - shift
        parts = [each.sum(1).double() for each in (y_float, y, y * y, y_float * y)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        rows += y.shape[1]
    if not rows:
        return None
    mean_float, mean, square, product = ((total / rows).cpu().numpy() for total in sums)
    offset = shift[:, 0].double().cpu().numpy()
    variance, covariance = square - mean**2, product - mean_float * mean
    return _OutputMoments(mean_float + offset, mean + offset, variance, covariance)


def _has_free_scales(plan: QuantPlan, site: Site) -> bool:
    """Return whether the weights of a layer have a scale of any value for each output channel."""
    params = plan.params(site.weight or "")
    if params is None or isinstance(params, Codebook) or site.weight in plan.weight_only:
        return False
    return isinstance(params.spec.granularity, PerChannel) and params.spec.scale_kind == "float"


def _compensated(
    plan: QuantPlan,
    site: Site,
    values: dict[str, ir.Value],
    outputs: _OutputMoments,
    gain: np.ndarray,
) -> QuantPlan:
    """Return the plan with the gain in a layer's scales and the shift in its bias."""
    name, bias = site.weight or "", site.bias or ""
    old = plan.weight(bias, values[bias]).astype(np.float64)
    shift = outputs.mean_float - gain * outputs.mean_quantized + (gain - 1) * old.reshape(-1)
    plan = plan.with_bias_shift(bias, values[bias], shift)
    if np.all(gain == 1):
        return plan
    params = plan.qparams(name)
    codes = plan.codes.get(name)
    codes = codes_of(plan.weight(name, values[name]), params) if codes is None else codes
    grid: QuantParams = replace(params, scale=(params.scale * gain).astype(np.float32))
    return replace(
        plan,
        grids={**plan.grids, plan.grid_of[name]: grid},
        codes={**plan.codes, name: codes},
        weight_overrides={
            **plan.weight_overrides,
            name: dequantize(codes.astype(np.float32), grid),
        },
    )
