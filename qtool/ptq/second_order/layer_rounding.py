"""Visit layers in order, round each on the moments of its inputs, and correct its bias."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from qtool.graph.queries import by_name, constant, has_one_use, nodes_by_name
from qtool.ptq.second_order.coordinate_descent import Steps
from qtool.ptq.second_order.covariance import LayerMoments, Moments, layer_moments
from qtool.ptq.second_order.hessian_rounding import (
    Rounded,
    asymmetric_target,
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
from qtool.steps.layer_guard import LayerGuard
from qtool.steps.layerwise import LayerwiseRun
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class Layer:
    """A layer with weights as a matrix product.

    Attributes:
        form: rows of inputs and weights.
        weights: of the float network, float64 [groups, outputs, unknowns].
        bias: of the float network; None where there is none of its own.
        tied: other layers read the same weights.
        first: no layer before it reads them.
    """

    form: MatrixLayer
    weights: np.ndarray
    bias: np.ndarray | None
    tied: bool
    first: bool


@dataclass(frozen=True)
class Visit:
    """A layer whose weights may be rounded anew.

    Attributes:
        layer: in the float network.
        moments: of its inputs.
        params: the grid of its weights.
        mask: 1 for weights that may have any code, 0 for pruned ones, [groups, outputs, unknowns];
            None: nothing is pruned.
    """

    layer: Layer
    moments: LayerMoments
    params: QuantParams
    mask: np.ndarray | None = None

    def target(self, damping: float, share: float | None) -> np.ndarray:
        """Return W + a (T - W): the weights to round, see :func:`asymmetric_target`.

        Args:
            damping: of H, as a share of its mean diagonal.
            share: a, 0 to 1; None: by cross-validation. Tied weights are not changed.
        """
        weights = self.layer.weights
        if self.layer.tied:
            return weights
        share = shrinkage(weights, self.moments, damping) if share is None else share
        if share == 0:
            return weights
        solved = asymmetric_target(weights, self.moments.total, damping)
        return np.asarray(weights + share * (solved - weights))

    @property
    def start(self) -> np.ndarray:
        """Steps of the present grid, float64 [groups, outputs, 1]."""
        rows = (*self.layer.weights.shape[:2], 1)
        scale = self.params.scale.astype(np.float64).reshape(-1)
        return np.broadcast_to(scale, rows[0] * rows[1]).reshape(rows)

    @property
    def steps(self) -> Steps:
        """Freedom that the steps of the grid have, for :func:`coordinate_descent`."""
        if self.params.spec.scale_kind != "float":
            return "fixed"
        return "shared" if isinstance(self.params.spec.granularity, PerTensor) else "rows"

    def scale(self, target: np.ndarray, hessian: np.ndarray, search: bool = True) -> np.ndarray:
        """Return steps to round T with, float64 [groups, outputs, 1].

        Args:
            target: T, see :meth:`target`.
            hessian: damped H.
            search: those of least error on H, where steps are free; else those of the grid.
        """
        scale, shared = self.start, self.steps == "shared"
        if search and self.steps != "fixed":
            scale = search_scale(target, hessian, self.params.spec, shared).astype(np.float32)
        return np.maximum(scale, SMALLEST_SCALE).astype(np.float64)

    def nearest(self, target: np.ndarray, scale: np.ndarray) -> Rounded:
        """Return the nearest codes of T; those of pruned weights are 0.

        Args:
            target: T, see :meth:`target`.
            scale: the steps.
        """
        spec = self.params.spec
        codes = round_half_even(target / scale).clip(spec.qmin, spec.qmax)
        return Rounded(codes if self.mask is None else codes * self.mask, scale)

    def better(self, result: Rounded, target: np.ndarray, hessian: np.ndarray) -> Rounded:
        """Return the result, or the nearest codes of W on the present grid where these err less."""
        nearest = self.nearest(self.layer.weights, self.start)
        errors = [row_errors(target - r.values, hessian).sum() for r in (result, nearest)]
        return result if errors[0] <= errors[1] else nearest


@dataclass(frozen=True)
class LayerRounding:
    """Settings of one pass over all layers.

    Attributes:
        name: of the step, for progress and the report.
        options: of the step, as text; finished layers are stored by it.
        samples: of the calibration data, at most.
        narrow_only: leave weights of 8 bits and more as they are.
        done: what happens to weights, for the note.
    """

    name: str
    options: str
    samples: int
    narrow_only: bool = False
    done: str = "rounded"

    def __call__(
        self, plan: QuantPlan, context: Context, rounding: Callable[[Visit], Rounded]
    ) -> StepResult:
        """Return the plan with new codes, scales and biases.

        Each layer is visited with the layers before it quantized and repaired, and keeps its
        change where its output comes closer on ``holdout``, see :class:`LayerGuard`.

        Args:
            plan: every grid is calibrated.
            context: the samples are read.
            rounding: returns the codes and scales of one layer.
        """
        with LayerwiseRun(context, plan, self.name, self.samples, holdout=True) as run:
            guard = LayerGuard(run, context, self.name, self.options)
            for site, layer in matrix_layers(run, plan, context):
                guard.visit(site, partial(self._visit, run, site, layer, context, rounding))
            rounded = len(run.plan.changes_since(plan).codes)
            count = min(self.samples, context.fit.count)
            note = f"the weights of {rounded} layers {self.done} on {count} samples"
            return guard.result([note], {"layers": rounded})

    def alone(
        self,
        plans: Sequence[QuantPlan],
        context: Context,
        rounding: Callable[[Visit], Rounded],
    ) -> list[QuantPlan]:
        """Return plans in which each layer is rounded against the inputs of the first plan.

        The layers before it are those of the first plan, unrepaired: a layer makes up for its own
        error alone, so that its cost can be measured with all others in floats.

        Args:
            plans: of one graph, which differ in the grids of weights.
            context: the ``fit`` samples are read.
            rounding: returns the codes and scales of one layer.
        """
        rounded = list(plans)
        with LayerwiseRun(context, plans[0], self.name, self.samples) as run:
            for site, layer in matrix_layers(run, plans[0], context):
                moments = _moments(run, site, layer, context)
                if moments is not None:
                    change = partial(self._changed, site, layer, moments, context, rounding)
                    rounded = list(map(change, rounded))
        return rounded

    def _visit(
        self,
        run: LayerwiseRun,
        site: Site,
        layer: Layer,
        context: Context,
        rounding: Callable[[Visit], Rounded],
    ) -> QuantPlan | None:
        """Return the plan of a run with its current layer changed; None without rows of inputs."""
        moments = _moments(run, site, layer, context)
        if moments is None:
            return None
        return self._changed(site, layer, moments, context, rounding, run.plan)

    def _changed(
        self,
        site: Site,
        layer: Layer,
        moments: LayerMoments,
        context: Context,
        rounding: Callable[[Visit], Rounded],
        plan: QuantPlan,
    ) -> QuantPlan:
        """Return a plan with new codes and the new bias of one layer."""
        params = self._grid(plan, site, layer, context)
        if params is not None:
            result = rounding(Visit(layer, moments, params, _mask(plan, site, layer)))
            plan = _with_codes(plan, site, layer.form, params, result)
        return plan if layer.bias is None else _with_bias(plan, site, layer, moments.total)

    def _grid(
        self, plan: QuantPlan, site: Site, layer: Layer, context: Context
    ) -> QuantParams | None:
        """Return the grid of a layer's weight, or None where it is not rounded anew."""
        name = site.weight or ""
        params = plan.params(name)
        if params is None or isinstance(params, Codebook) or name in plan.weight_only:
            return None
        spec = params.spec
        if isinstance(spec.granularity, PerBlock) or not spec.symmetric:
            return None
        # Scales that keep pairs of 8-bit products in int16 count on the nearest codes.
        if spec.bits >= 8 and (self.narrow_only or context.target.int16_pairs):
            return None
        return params if layer.first else None


def matrix_layers(
    run: LayerwiseRun, plan: QuantPlan, context: Context
) -> Iterator[tuple[Site, Layer]]:
    """Yield the layers of a plan that are matrix products, from the float network."""
    values, nodes = by_name(context.model.graph), nodes_by_name(context.model.graph)
    uses, passed = plan.weight_uses(), set[str]()
    for site in run.sites():
        weight = constant(values[site.weight or ""])
        form = None if weight is None else matrix_layer(nodes[site.name], weight)
        if weight is None or form is None:
            continue
        own = site.bias in values and has_one_use(values[site.bias])
        bias = constant(values[site.bias or ""]) if own else None
        weights = form.matrices(weight.astype(np.float64))
        name = site.weight or ""
        yield site, Layer(form, weights, bias, uses[name] > 1, name not in passed)
        passed.add(name)


def _moments(run: LayerwiseRun, site: Site, layer: Layer, context: Context) -> LayerMoments | None:
    """Return moments of a layer's inputs, about their means if it has a bias; None: no rows."""
    centred = layer.bias is not None
    moments = layer_moments(run, site, layer.form, layer.weights, centred, context.seed)
    return moments if moments.total.rows else None


def _mask(plan: QuantPlan, site: Site, layer: Layer) -> np.ndarray | None:
    """Return the mask of a layer's weights as numbers 0 and 1; None where nothing is pruned."""
    mask = plan.masks.get(site.weight or "")
    return None if mask is None else layer.form.matrices(mask.astype(np.float64))


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


def _with_bias(plan: QuantPlan, site: Site, layer: Layer, moments: Moments) -> QuantPlan:
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
