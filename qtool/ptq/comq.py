"""Round weights by coordinate descent on the error of a layer's output, without gradients."""

from dataclasses import KW_ONLY
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.second_order.coordinate_descent import coordinate_descent
from qtool.ptq.second_order.hessian_rounding import Rounded, damped
from qtool.ptq.second_order.layer_rounding import LayerRounding, Visit
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class Comq:
    """Round weights by coordinate descent: one code at a time, then the steps, all else fixed.

    Layer by layer, with the layers before it quantized and repaired. From the nearest codes, with
    E = W - s q and H = cov(x_q) + lam I over calibration samples and positions::

        q_i <- clip(round(q_i + (E H)_i / (s H_ii)))   column after column, large H_ii first
        s   <- (W H q') / (q H q')                     after each sweep
        b   <- b + W E[x_float] - s q E[x_q]

    Every change is the minimum along its coordinate, so the error E H E' never grows. `gptq` rounds
    each column once and compensates, then takes the same sweeps (`refine`). Weights that `gptq`
    leaves are left here too. No labels are read.

    Args:
        damping: lam, as a share of the mean diagonal of cov(x_q).
        sweeps: over all columns, at most; none after one that changed no code.
        samples: of the calibration data, at most.

    Source: Zhang et al. 2024, "COMQ: A Backpropagation-Free Algorithm for Post-Training
        Quantization", alg. 2, arXiv:2403.07134.
    Departure: centred moments, so that the bias takes up the means; the first steps are those of
        least error on H; rows of more than the median power weigh less.
    """

    _: KW_ONLY
    damping: float = Field(default=0.01, gt=0, le=1)
    sweeps: int = Field(default=3, ge=1)
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
        return LayerRounding("comq", repr(self), self.samples)(plan, context, self._round)

    def _round(self, visit: Visit) -> Rounded:
        """Return the codes and scales of one layer."""
        spec, weights = visit.params.spec, visit.layer.weights
        hessian = damped(visit.moments.total.hessian, self.damping)
        result = coordinate_descent(
            visit.nearest(weights, visit.scale(weights, hessian)),
            weights,
            hessian,
            (spec.qmin, spec.qmax),
            self.sweeps,
            visit.steps,
            visit.mask,
        )
        return visit.better(result, weights, hessian)
