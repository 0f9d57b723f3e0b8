"""Scale kinds, and constraining the scales of a plan's weights to them before freezing."""

from dataclasses import KW_ONLY, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.graph.queries import by_name
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams, QuantSpec
from qtool.quant.scale_formats import constrain_weight_scale


class ScaleKind(Protocol):
    """A form of scales; the type of the entries of SCALES."""

    @property
    def kind(self) -> str:
        """The form as ``QuantSpec.scale_kind`` holds it."""


@dataclass(frozen=True)
class Float:
    """Any scale; integer hardware multiplies by 31 bits and shifts, one pair for each channel.

    Source: Jacob et al. 2018, sec. 2.2, arXiv:1712.05877.
    """

    kind = "float"


@dataclass(frozen=True)
class PowerOfTwo:
    """Every scale is 2^k: a rescaling is one shift.

    Activations get the power and zero point with the smallest squared error on their histogram;
    each channel of weights gets the one of the two neighbouring powers with the smaller error.

    Source: N2D2, CEA-LIST, activation scaling mode "single-shift"; see docs/methods/weights.md.
    """

    kind = "power_of_two"


@dataclass(frozen=True)
class DoubleShift:
    """Scales are 2^n + 2^m for weights, 2^k for activations: a rescaling is two shifts and a sum.

    Source: N2D2, CEA-LIST, activation scaling mode "double-shift"; see docs/methods/weights.md.
    """

    kind = "double_shift"


@dataclass(frozen=True)
class FixedPoint:
    """Multipliers are x * 2^-p: an integer x for each channel, one shift p for each layer.

    Scales of activations stay as they are; the scale of each channel of weights is chosen so that
    its multiplier is exact. Sums, products and pools of activations round their multipliers to the
    same width.

    Args:
        width: bits of x, sign included.
    Source: N2D2, CEA-LIST, activation scaling mode "fixed-point"; see docs/methods/weights.md.
    """

    _: KW_ONLY
    width: int = Field(default=16, ge=4, le=32)

    @property
    def kind(self) -> str:
        """The form as ``QuantSpec.scale_kind`` holds it."""
        return f"fixed_point:{self.width}"


SCALES: dict[str, type[ScaleKind]] = {
    "float": Float,
    "power_of_two": PowerOfTwo,
    "double_shift": DoubleShift,
    "fixed_point": FixedPoint,
}


def request_scale_kind(plan: QuantPlan, kind: str) -> QuantPlan:
    """Set the scale kind of all integer sites; weights of float ops keep float scales.

    Args:
        plan: annotated, without QuantParams.
        kind: float | power_of_two | double_shift | fixed_point:<bits>.

    Returns:
        The plan with these QuantSpecs.
    """
    grids = dict(plan.grids)
    for value, grid in plan.grid_of.items():
        spec = grids[grid]
        if isinstance(spec, QuantSpec) and spec.bits < 32 and value not in plan.weight_only:
            grids[grid] = replace(spec, scale_kind=kind)
    return replace(plan, grids=grids)


def constrain_plan_scales(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    """Constrain the scales of weights to their scale kind, and drop the codes of other scales.

    Scales of activations are constrained in calibration already, where histograms are at hand.

    Args:
        model: the rewritten graph.
        plan: every activation and weight has QuantParams.

    Returns:
        The plan with these grids; ``freeze`` rounds the weights.
    """
    values = by_name(model.graph)
    grids, codes = dict(plan.grids), dict(plan.codes)
    for site in plan.sites.values():
        name = site.weight or ""
        params = grids.get(name)
        if not isinstance(params, QuantParams) or params.spec.scale_kind == "float":
            continue
        if params is not plan.grids[name]:
            continue  # shared weights: constrained for their first reader already
        ratio = None
        x, y = plan.params(site.inputs[0]), plan.params(site.output)
        if x is not None and y is not None:
            ratio = float(x.scale.astype(np.float64) / y.scale)
        grids[name] = constrain_weight_scale(plan.weight(name, values[name]), params, ratio)
        codes.pop(name, None)
    return replace(plan, grids=grids, codes=codes)
