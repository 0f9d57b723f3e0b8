"""Change the gain and the mean of layers' output channels through weight scales and biases."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import by_name, has_one_use
from qtool.quant.chunked import codes_of
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import Codebook, PerChannel, QuantParams, dequantize
from qtool.steps.context import Context
from qtool.steps.layer_guard import LayerGuard
from qtool.steps.layerwise import LayerwiseRun
from qtool.steps.step import StepResult


@dataclass(frozen=True, eq=False)
class OutputMoments:
    """Moments of a layer's outputs before the activation function, per channel, float64 [C].

    Attributes:
        mean_float: in the float network.
        mean, variance: in the quantized network.
        covariance: of both networks' outputs.
    """

    mean_float: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray


def output_moments(run: LayerwiseRun, site: Site) -> OutputMoments | None:
    """Return the moments of a layer's outputs over samples and positions; None without rows."""
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
    return OutputMoments(mean_float + offset, mean + offset, variance, covariance)


def has_free_scales(plan: QuantPlan, site: Site) -> bool:
    """Return whether the weights of a layer have a scale of any value for each output channel."""
    params = plan.params(site.weight or "")
    if params is None or isinstance(params, Codebook) or site.weight in plan.weight_only:
        return False
    return isinstance(params.spec.granularity, PerChannel) and params.spec.scale_kind == "float"


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """A change of a layer's output: ``y[c] <- gain[c] y[c] + shift[c]``.

    Attributes:
        gain, shift: float64 [C].
    """

    gain: np.ndarray
    shift: np.ndarray

    def applied(self, plan: QuantPlan, site: Site, values: Mapping[str, ir.Value]) -> QuantPlan:
        """Return the plan with the gain in the layer's scales, and gain and shift in its bias.

        Args:
            plan: the codes of the weights stay.
            site: has a bias, and scales of its own where a gain is not 1.
            values: of the graph, by name.
        """
        name, bias = site.weight or "", site.bias or ""
        old = plan.weight(bias, values[bias]).astype(np.float64)
        shift = self.shift + (self.gain - 1) * old.reshape(-1)
        plan = plan.with_bias_shift(bias, values[bias], shift)
        if np.all(self.gain == 1):
            return plan
        params = plan.qparams(name)
        codes = plan.codes.get(name)
        codes = codes_of(plan.weight(name, values[name]), params) if codes is None else codes
        grid: QuantParams = replace(params, scale=(params.scale * self.gain).astype(np.float32))
        weights = dequantize(codes.astype(np.float32), grid)
        return replace(
            plan,
            grids={**plan.grids, plan.grid_of[name]: grid},
            codes={**plan.codes, name: codes},
            weight_overrides={**plan.weight_overrides, name: weights},
        )


@dataclass(frozen=True)
class Compensation:
    """The outcome of :func:`compensate`.

    Attributes:
        guard: of the pass over the layers.
        channels: number of channels whose gain was changed.
        samples: that the moments were taken over.
    """

    guard: LayerGuard
    channels: int
    samples: int

    @property
    def layers(self) -> int:
        """Number of layers that were changed."""
        return self.guard.changed

    def result(self, note: str) -> StepResult:
        """Return the result of a step.

        Args:
            note: says what was done.
        """
        return self.guard.result([note], {"layers": self.layers, "channels": self.channels})


def compensate(
    plan: QuantPlan,
    context: Context,
    name: str,
    options: str,
    layers: Collection[str],
    change: Callable[[Site, OutputMoments, bool], ChannelAffine],
) -> Compensation:
    """Change the outputs of layers in order, with the layers before them quantized and changed.

    A layer stays as it is where its output comes no closer on ``holdout``, see :class:`LayerGuard`.

    Args:
        plan: every grid is calibrated.
        context: the samples are read.
        name: of the step, for progress and the report.
        options: of the step, as text; finished layers are stored by it.
        layers: names of the sites to change.
        change: returns the change of a layer from the moments of its outputs and whether its gains
            are free; where they are not, the gain must be 1.
    """
    values, uses = by_name(context.model.graph), plan.weight_uses()

    def changed(run: LayerwiseRun, site: Site) -> QuantPlan | None:
        outputs = output_moments(run, site)
        if outputs is None:
            return None
        free = uses[site.weight or ""] == 1 and has_free_scales(run.plan, site)
        return change(site, outputs, free).applied(run.plan, site, values)

    with LayerwiseRun(context, plan, name, holdout=True) as run:
        guard = LayerGuard(run, context, name, options)
        for site in run.sites():
            own_bias = site.bias in values and has_one_use(values[site.bias])
            if site.name in layers and own_bias:
                guard.visit(site, partial(changed, run, site))
        return Compensation(guard, _changed_scales(plan, run.plan), run.dataset.count)


def _changed_scales(old: QuantPlan, new: QuantPlan) -> int:
    """Return the number of scales of weights that differ."""
    grids = new.changes_since(old).grids
    pairs = ((old.grids[name], grid) for name, grid in grids.items())
    return sum(
        int(np.sum(a.scale != b.scale))
        for a, b in pairs
        if isinstance(a, QuantParams) and isinstance(b, QuantParams)
    )
