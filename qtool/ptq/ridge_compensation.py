"""Refit weights to quantized inputs by ridge regression, then round them to the nearest codes."""

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.second_order.hessian_rounding import Rounded, damped, search_scale
from qtool.ptq.second_order.layer_rounding import LayerRounding, Visit
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import SMALLEST_SCALE, PerTensor, round_half_even
from qtool.steps.context import Context
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class RidgeCompensation:
    """Refit weights by ridge regression so that they undo the error of a layer's rounded inputs.

    Layer by layer, with the layers before it quantized and refitted; e = x_float - x_q::

        T = W + W E[e x_q'] (E[x_q x_q'] + lam I)^-1,   lam = damping x mean diag H
        b <- b + W E[x_float] - s q E[x_q],   q = round(T / s)

    The moments are those about the means. It is the first half of `gptq`, which rounds T column by
    column; here codes are the nearest ones, so it takes less time. Weights that `gptq` leaves are
    left here too. No labels are read.

    Args:
        damping: of H, as a share of its mean diagonal.
        samples: of the calibration data, at most.

    Source: Zhong et al. 2024, "ERQ", sec. 3.2 (activation quantization error reduction),
        arXiv:2407.06794.
    Departure: moments are centred, so that the bias takes up the means; how far to go from W to T
        is chosen by cross-validation; lam is relative to the inputs.
    """

    _: KW_ONLY
    damping: float = Field(default=0.01, gt=0, le=1)
    samples: int = Field(default=256, ge=1)

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True
    second_order: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with new codes, scales and biases.

        Args:
            plan: every grid is calibrated.
            context: the ``fit`` samples are read.
        """
        pass_over = LayerRounding("ridge_compensation", self.samples)
        plan, refitted = pass_over(plan, context, self._round)
        count = min(self.samples, context.fit.count)
        note = f"the weights of {refitted} layers refitted on {count} samples"
        return StepResult(plan, (note,), {"layers": refitted})

    def _round(self, visit: Visit) -> Rounded:
        """Return the nearest codes of T."""
        spec, target = visit.params.spec, visit.target(self.damping, None)
        hessian = damped(visit.moments.total.hessian, self.damping)
        scale = visit.start
        if spec.scale_kind == "float":
            shared = isinstance(spec.granularity, PerTensor)
            scale = search_scale(target, hessian, spec, shared).astype(np.float32)
        scale = np.maximum(scale, SMALLEST_SCALE).astype(np.float64)
        codes = round_half_even(target / scale).clip(spec.qmin, spec.qmax)
        codes = codes if visit.mask is None else codes * visit.mask
        return visit.better(Rounded(codes, scale), target, hessian)
