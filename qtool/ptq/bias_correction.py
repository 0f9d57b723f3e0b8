"""Correct the mean of every layer's output through its bias."""

from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from pydantic.dataclasses import dataclass

from qtool.graph.queries import by_name, has_one_use
from qtool.quant.plan import QuantPlan, Site
from qtool.steps.context import Context
from qtool.steps.layer_guard import LayerGuard
from qtool.steps.layerwise import LayerwiseRun
from qtool.steps.row_weights import row_power, row_weights, typical_power
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class BiasCorrection:
    """Correct biases so that every layer's mean output is that of the float network.

    Layer by layer, with the layers before it quantized and corrected::

        b[c] <- b[c] + mean(y_float[c] - y_quantized[c])

    over calibration samples and positions, y the output before the activation function. Absorbs
    the shift from rounded weights and from rounded activations. A layer keeps its bias where the
    error on held-out samples does not fall. No labels are read.

    Source: Nagel et al. 2019, sec. 4.2 and appendix D (empirical form), arXiv:1906.04721.
    Departure: positions of more than the median power weigh less, since their errors are
        large and mostly cut off by the activation function.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with corrected biases.

        Args:
            plan: every grid is calibrated.
            context: the samples are read.
        """
        values = by_name(context.model.graph)
        with LayerwiseRun(context, plan, "bias_correction", holdout=True) as run:
            guard = LayerGuard(run, context, "bias_correction", repr(self))
            for site in run.sites():
                if site.bias in values and has_one_use(values[site.bias]):
                    guard.visit(site, partial(_corrected, run, site, values[site.bias]))
            note = f"the biases of {guard.changed} layers corrected on {context.fit.count} samples"
            return guard.result([note], {"layers": guard.changed})


def _corrected(run: LayerwiseRun, site: Site, bias: ir.Value) -> QuantPlan | None:
    """Return the plan of a run with the bias of a layer corrected; None without rows."""
    shift = _mean_shift(run, site)
    return None if shift is None else run.plan.with_bias_shift(site.bias or "", bias, shift)


def _mean_shift(run: LayerwiseRun, site: Site) -> np.ndarray | None:
    """Return E[y_float - y_quantized] per output channel, float64 [C]; None without rows."""
    # Without axes, so that it can be added to sums on any device.
    total, rows, typical = torch.zeros(()), 0.0, torch.empty(0)
    axis = 1 if site.op == "Conv" else -1
    for y_float, y_quantized in run.outputs(site):
        power = row_power(y_float, axis)
        typical = typical if rows else typical_power(power)
        weights = row_weights(power, typical).double()
        difference = weights * (y_float - y_quantized).double()
        total = total + difference.movedim(axis, 0).flatten(1).sum(1)
        rows += float(weights.sum())
    return (total / rows).cpu().numpy() if rows else None
