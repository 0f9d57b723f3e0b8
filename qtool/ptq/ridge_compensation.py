"""Refit weights to quantized inputs by ridge regression, then round them to the nearest codes."""

from dataclasses import KW_ONLY
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.second_order.hessian_rounding import Rounded, damped
from qtool.ptq.second_order.layer_rounding import LayerRounding, Visit
from qtool.quant.plan import QuantPlan
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
        name = "ridge_compensation"
        pass_over = LayerRounding(name, repr(self), self.samples, done="refitted")
        return pass_over(plan, context, self._round)

    def _round(self, visit: Visit) -> Rounded:
        """Return the nearest codes of T."""
        target = visit.target(self.damping, None)
        hessian = damped(visit.moments.total.hessian, self.damping)
        result = visit.nearest(target, visit.scale(target, hessian))
        return visit.better(result, target, hessian)
