"""Choose the range of each weight by the error of its layer's output, layer by layer."""

from dataclasses import KW_ONLY, replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.graph.queries import by_name, constant, nodes_by_name
from qtool.ptq.second_order.covariance import Moments, layer_moments
from qtool.ptq.second_order.im2col import MatrixLayer, matrix_layer
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import (
    Codebook,
    PerBlock,
    PerTensor,
    QuantParams,
    fake_quantize,
    params_from_range,
)
from qtool.steps.context import Context
from qtool.steps.layer_guard import LayerGuard
from qtool.steps.layerwise import LayerwiseRun
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class SeqMSE:
    """Choose the range of each weight by the error of its layer's output, layer by layer.

    minimize over k: E |W x_float - fake_quantize(W; k / candidates * range) x_q|^2, each channel

    x_q is the input as the layers before, quantized and searched already, compute it. The plan's
    own range is one of the candidates, so on the moments of the inputs no layer gets worse; a layer
    keeps its range where the error on held-out samples does not fall too. It works for weights of 2
    to 16 bits with equal steps, symmetric or not, per tensor and per channel. Scales per block and
    of a fixed form (`bits.scale`), code books, weights with codes (a step such as `gptq` came
    before), and 8-bit weights whose scales keep pairs of products in int16 stay as they are; a note
    counts them.

    Args:
        candidates: factors on the full range, from 1 down to 1 / candidates.
        samples: of the calibration data, at most.
    Source: Qualcomm AIMET, "Sequential MSE", aimet_torch/seq_mse.py. Departure: the error is
        computed from second moments of the inputs, which are the same sums; AIMET runs the layer
        for every candidate.
    """

    _: KW_ONLY
    candidates: int = Field(default=20, ge=2)
    samples: int = Field(default=256, ge=1)

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    guarded: ClassVar[bool] = True
    second_order: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with new grids of weights.

        Args:
            plan: every grid is calibrated.
            context: the samples are read.
        """
        values, nodes = by_name(context.model.graph), nodes_by_name(context.model.graph)
        searched: set[str] = set()
        others: set[str] = set()
        with LayerwiseRun(context, plan, "seqmse", self.samples, holdout=True) as run:
            guard = LayerGuard(run, context, "seqmse", repr(self))
            for site in run.sites():
                name = site.weight or ""
                if name in searched:
                    continue  # tied weights: the first layer decides
                layer = _layer(run.plan, site, values[name], nodes[site.name], context)
                if layer is None:
                    others.add(name)
                    continue
                weight = run.plan.weight(name, values[name])
                guard.visit(site, partial(self._searched, run, site, layer, weight, context.seed))
                searched.add(name)
            notes = [f"ranges of {len(searched)} weights searched on {run.dataset.count} samples"]
        if others - searched:
            notes.append(f"{len(others - searched)} weights have no range to search")
        return guard.result(notes, {"layers": len(searched)})

    def _searched(
        self, run: LayerwiseRun, site: Site, layer: MatrixLayer, weight: np.ndarray, seed: int
    ) -> QuantPlan | None:
        """Return the plan of a run with the best grid of a weight; None without rows of inputs."""
        plan, name = run.plan, site.weight or ""
        matrices = layer.matrices(weight.astype(np.float64))
        moments = layer_moments(run, site, layer, matrices, False, seed).total
        if not moments.rows:
            return None
        old = plan.qparams(name)
        grid = best_grid(weight, old, layer, moments, self.candidates)
        if (grid.scale == old.scale).all() and (grid.zero_point == old.zero_point).all():
            return plan
        return replace(plan, grids={**plan.grids, plan.grid_of[name]: grid})


def _layer(
    plan: QuantPlan, site: Site, value: ir.Value, node: ir.Node, context: Context
) -> MatrixLayer | None:
    """Return a layer as a matrix product; None where the range of its weight is fixed."""
    name, weight = site.weight or "", constant(value)
    params = plan.params(name)
    if params is None or isinstance(params, Codebook) or name in plan.codes or weight is None:
        return None
    spec = params.spec
    if isinstance(spec.granularity, PerBlock) or spec.scale_kind != "float":
        return None
    if spec.bits >= 8 and context.target.int16_pairs:
        return None
    return matrix_layer(node, weight)


def best_grid(
    weight: np.ndarray, params: QuantParams, layer: MatrixLayer, moments: Moments, candidates: int
) -> QuantParams:
    """Return the grid of least output error, channel by channel; the first of equal ones.

    ::

        E |W x_float - Q x_q|^2 = Q H Q' - 2 W C Q' + constant
        H = E[x_q x_q'],  W C = W E[x_float x_q']

    Args:
        weight: float, in the shape of the initializer.
        params: the grid that is tried first.
        layer: the same layer as a matrix product.
        moments: of its inputs, about zero.
        candidates: factors on the full range of a channel.
    """
    spec, matrices = params.spec, layer.matrices(weight.astype(np.float64))
    rows = matrices.reshape(-1, layer.unknowns)
    shared = isinstance(spec.granularity, PerTensor)
    low, high = rows.min(1), rows.max(1)
    low, high = (low.min(), high.max()) if shared else (low, high)
    product = matrices @ moments.hessian + moments.error

    def errors(grid: QuantParams) -> np.ndarray:
        rounded = layer.matrices(fake_quantize(weight, grid).astype(np.float64))
        each = np.sum((rounded @ moments.hessian - 2 * product) * rounded, 2).reshape(-1)
        return np.asarray(each.sum() if shared else each)

    scale, zero, least = params.scale.copy(), params.zero_point.copy(), errors(params)
    for k in range(candidates, 0, -1):
        trial = params_from_range(k / candidates * low, k / candidates * high, spec)
        error = errors(trial)
        better = error < least
        scale, zero = np.where(better, trial.scale, scale), np.where(better, trial.zero_point, zero)
        least = np.where(better, error, least)
    return replace(params, scale=scale.astype(np.float32), zero_point=zero.astype(np.int32))
