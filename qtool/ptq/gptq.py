"""Round weights with second-order compensation, against the outputs of the float network."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.second_order.coordinate_descent import coordinate_descent
from qtool.ptq.second_order.hessian_rounding import (
    Rounded,
    damped,
    round_with_compensation,
)
from qtool.ptq.second_order.layer_rounding import LayerRounding, Visit
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class Gptq:
    """Round weights column by column; each error is compensated by the columns that follow.

    Layer by layer, with the layers before it quantized and repaired. With H = cov(x_q) and
    C = cov(x_float, x_q) over calibration samples and positions::

        T = (W C + lam W) (H + lam I)^-1            lam = damping x mean diag H
        U = chol((H + lam I)^-1)                    upper
        q_i = round(t_i / s);  t_j -= (t_i - s q_i) U_ij / U_ii    for j > i
        b <- b + W E[x_float] - s q E[x_q]

    T undoes the error of the layer's input as far as two halves of the samples agree on it. Weights
    of 2 to 16 bits of Conv (grouped and depthwise too), Gemm and MatMul, on uniform symmetric
    grids; code books, blocks and weights of float ops are left as they are. Pruned weights stay 0,
    and the other columns make up for them too (SparseGPT, arXiv:2301.00774). No labels are read.

    Args:
        damping: of H, as a share of its mean diagonal.
        act_order: columns with large inputs first.
        asymmetric: how far to go from W to T: auto by cross-validation; true all the way, false
            not at all.
        ranges: choose each channel's range below 8 bits again, by the error it leaves on H.
        refine: sweeps of coordinate descent after the rounding, with a refit of the scales.
        bits: below_8 | all: which weights; biases are corrected in all layers.
        block: columns between two updates of the columns that follow.
        samples: of the calibration data, at most.
        at_most: share of the distance before, on holdout samples, below which the distance must
            fall, else everything is rolled back: what a few samples gain by little is not kept.

    Source: Frantar et al. 2022, arXiv:2210.17323 (rounding); Frantar and Alistarh 2022,
        arXiv:2208.11580 (convolutions); Li et al. 2025, "GPTAQ", arXiv:2504.02692 (asymmetric
        calibration).
    Departure: centred moments, so that the bias takes up the means; T is solved before rounding;
        rows of more than the median power weigh less.
    """

    _: KW_ONLY
    damping: float = Field(default=0.01, gt=0, le=1)
    act_order: bool = True
    asymmetric: Literal["auto"] | bool = "auto"
    ranges: bool = True
    refine: int = Field(default=3, ge=0)
    bits: Literal["below_8", "all"] = "all"
    block: int = Field(default=128, ge=1)
    samples: int = Field(default=256, ge=1)
    at_most: float = Field(default=1.0, gt=0, le=1)

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True
    second_order: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with new codes, scales and biases.

        Args:
            plan: every grid is calibrated.
            context: the ``fit`` samples are read.
        """
        return self._pass(plan, context, self._round)

    def round_alone(self, plans: Sequence[QuantPlan], context: Context) -> list[QuantPlan]:
        """Return plans in which each layer is rounded alone.

        Args:
            plans: see :meth:`LayerRounding.alone`.
            context: the ``fit`` samples are read.
        """
        return self._pass.alone(plans, context, self._round)

    @property
    def _pass(self) -> LayerRounding:
        return LayerRounding("gptq", repr(self), self.samples, self.bits == "below_8")

    def _round(self, visit: Visit) -> Rounded:
        """Return the codes and scales of one layer: never a larger error on H than nearest ones."""
        spec = visit.params.spec
        share = None if self.asymmetric == "auto" else float(self.asymmetric)
        target = visit.target(self.damping, share)
        hessian = damped(visit.moments.total.hessian, self.damping)
        scale, limits = visit.scale(target, hessian, self.ranges), (spec.qmin, spec.qmax)
        result = round_with_compensation(
            target, hessian, scale, limits, self.act_order, self.block, visit.mask
        )
        if self.refine and visit.steps != "fixed":
            result = coordinate_descent(
                result, target, hessian, limits, self.refine, visit.steps, visit.mask
            )
        return visit.better(result, target, hessian)
