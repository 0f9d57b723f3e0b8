"""Round weights with second-order compensation, against the outputs of the float network."""

from dataclasses import KW_ONLY, replace
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.graph.queries import by_name, constant, nodes_by_name
from qtool.ptq.comq import coordinate_descent
from qtool.ptq.second_order.covariance import LayerMoments, Moments, layer_moments
from qtool.ptq.second_order.hessian_rounding import (
    Rounded,
    asymmetric_target,
    damped,
    round_with_compensation,
    row_errors,
    search_scale,
    shrinkage,
)
from qtool.ptq.second_order.im2col import MatrixLayer, matrix_layer
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import (
    SMALLEST_SCALE,
    Codebook,
    PerBlock,
    PerTensor,
    QuantParams,
    dequantize,
    round_half_even,
)
from qtool.steps.context import Context
from qtool.steps.layerwise import LayerwiseRun
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
    grids; code books, blocks and weights of float ops are left as they are. No labels are read.

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

    Source: Frantar et al. 2022, arXiv:2210.17323 (rounding); Frantar and Alistarh 2022,
        arXiv:2208.11580 (convolutions); Li et al. 2025, "GPTAQ", arXiv:2504.02692 (asymmetric
        calibration).
    Departure: centred moments, so that the bias takes up the means; T is solved before rounding.
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

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with new codes, scales and biases.

        Args:
            plan: every grid is calibrated.
            context: the ``fit`` samples are read.
        """
        layers = _Layers(context, plan)
        rounded = 0
        with LayerwiseRun(context, plan, "gptq", self.samples) as run:
            for site in run.sites():
                layer = layers.of(site)
                if layer is None:
                    continue
                centred = layer.bias is not None
                moments = layer_moments(run, site, layer.form, layer.weights, centred, context.seed)
                if not moments.total.rows:
                    continue
                params = self._grid(run.plan, site, layer, context)
                if params is not None:
                    result = self._round(layer, moments, params)
                    run.plan = _with_codes(run.plan, site, layer.form, params, result)
                    rounded += 1
                if layer.bias is not None:
                    run.plan = _with_bias(run.plan, site, layer, moments.total)
            note = f"the weights of {rounded} layers rounded on {run.dataset.count} samples"
            return StepResult(run.plan, (note,), {"layers": rounded})

    def _grid(
        self, plan: QuantPlan, site: Site, layer: "_Layer", context: Context
    ) -> QuantParams | None:
        """Return the grid of a layer's weight, or None where this step does not round it."""
        name = site.weight or ""
        params = plan.params(name)
        if params is None or isinstance(params, Codebook) or name in plan.weight_only:
            return None
        spec = params.spec
        if isinstance(spec.granularity, PerBlock) or not spec.symmetric:
            return None
        # Scales that keep pairs of 8-bit products in int16 count on the nearest codes.
        if spec.bits >= 8 and (self.bits == "below_8" or context.target.int16_pairs):
            return None
        return None if layer.tied and name in plan.codes else params

    def _round(self, layer: "_Layer", moments: LayerMoments, params: QuantParams) -> Rounded:
        """Return the codes and scales of one layer: never a larger error on H than nearest ones."""
        weights, spec = layer.weights, params.spec
        share = 0.0 if layer.tied else float(self.asymmetric is True)
        if self.asymmetric == "auto" and not layer.tied:
            share = shrinkage(weights, moments, self.damping)
        target = weights
        if share > 0:
            solved = asymmetric_target(weights, moments.total, self.damping)
            target = weights + share * (solved - weights)
        hessian = damped(moments.total.hessian, self.damping)
        shared = isinstance(spec.granularity, PerTensor)
        free, limits = spec.scale_kind == "float", (spec.qmin, spec.qmax)
        rows = (*weights.shape[:2], 1)
        scale = np.broadcast_to(params.scale.astype(np.float64).reshape(-1), rows[0] * rows[1])
        start = scale = scale.reshape(rows)
        if free and self.ranges:
            scale = search_scale(target, hessian, spec, shared).astype(np.float32)
        scale = np.maximum(scale, SMALLEST_SCALE).astype(np.float64)
        result = round_with_compensation(target, hessian, scale, limits, self.act_order, self.block)
        if self.refine and free:
            result = coordinate_descent(result, target, hessian, limits, self.refine, shared)
        nearest = Rounded(round_half_even(weights / start).clip(*limits), start)
        errors = [row_errors(target - r.values, hessian).sum() for r in (result, nearest)]
        return result if errors[0] <= errors[1] else nearest


@plain_dataclass(frozen=True)
class _Layer:
    """A layer with weights as a matrix product.

    Attributes:
        form: rows of inputs and weights.
        weights: of the float network, float64 [groups, outputs, unknowns].
        bias: of the float network; None where there is none of its own.
        tied: other layers read the same weights.
    """

    form: MatrixLayer
    weights: np.ndarray
    bias: np.ndarray | None
    tied: bool


class _Layers:
    """The layers of a plan that are matrix products, from the float network."""

    def __init__(self, context: Context, plan: QuantPlan) -> None:
        self._values = by_name(context.model.graph)
        self._nodes = nodes_by_name(context.model.graph)
        self._uses = plan.weight_uses()

    def of(self, site: Site) -> _Layer | None:
        """Return one layer, or None where it is no matrix product."""
        weight = constant(self._values[site.weight or ""])
        form = None if weight is None else matrix_layer(self._nodes[site.name], weight)
        if weight is None or form is None:
            return None
        own = site.bias in self._values and self._uses[site.bias or ""] == 1
        bias = constant(self._values[site.bias or ""]) if own else None
        weights = form.matrices(weight.astype(np.float64))
        return _Layer(form, weights, bias, self._uses[site.weight or ""] > 1)


def _with_codes(
    plan: QuantPlan, site: Site, form: MatrixLayer, params: QuantParams, rounded: Rounded
) -> QuantPlan:
    """Return the plan with the codes of a weight; its float array holds the same values."""
    name = site.weight or ""
    scales = rounded.scale.reshape(-1).astype(np.float32)
    scales = scales[: params.scale.size]  # one where all rows share it
    grid = replace(params, scale=scales.reshape(params.scale.shape))
    codes = form.from_matrices(rounded.codes).astype(params.container)
    values = dequantize(codes.astype(np.float32), grid)
    return replace(
        plan,
        grids={**plan.grids, plan.grid_of[name]: grid},
        codes={**plan.codes, name: codes},
        weight_overrides={**plan.weight_overrides, name: values},
    )


def _with_bias(plan: QuantPlan, site: Site, layer: _Layer, moments: Moments) -> QuantPlan:
    """Return the plan with b + W E[x_float] - W_q E[x_q] as the bias of a layer."""
    name, weight = site.weight or "", layer.form.node.inputs[1]
    if weight is None or plan.params(name) is None or layer.bias is None or site.bias is None:
        return plan
    quantized = layer.form.matrices(plan.rounded_weight(name, weight).astype(np.float64))
    shift = layer.weights @ moments.mean_float[:, :, None]
    shift = shift - quantized @ moments.mean_quantized[:, :, None]
    new = (layer.bias.astype(np.float64) + shift.reshape(-1)).astype(np.float32)
    overrides = {**plan.weight_overrides, site.bias: new.reshape(layer.bias.shape)}
    return replace(plan, weight_overrides=overrides)
