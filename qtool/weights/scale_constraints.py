"""Bring a plan's grids to the scale kind they ask for: found, but not yet rounded to codes."""

from dataclasses import KW_ONLY, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.graph.queries import by_name, constant
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams, QuantSpec
from qtool.quant.scale_formats import constrain_weight_scale


@dataclass(frozen=True)
class Float:
    """Any scale; integer hardware multiplies by 31 bits and shifts, a pair for each channel.

    Source: Jacob et al. 2018, sec. 2.2, arXiv:1712.05877.
    """

    kind = "float"


@dataclass(frozen=True)
class PowerOfTwo:
    """Every scale 2^k: a rescaling is one shift.

    Activations take the power, and zero point, with the smallest squared error on their histogram;
    weights, channel by channel, the one of the two neighbours that fits them better.

    Source: N2D2, CEA-LIST, activation scaling mode "single-shift"; see docs/methods.md.
    """

    kind = "power_of_two"


@dataclass(frozen=True)
class DoubleShift:
    """Scales of weights 2^n + 2^m, of activations 2^k: a rescaling is two shifts and one sum.

    Source: N2D2, CEA-LIST, activation scaling mode "double-shift"; see docs/methods.md.
    """

    kind = "double_shift"


@dataclass(frozen=True)
class FixedPoint:
    """Multipliers x * 2^-p: an integer for each channel, one shift for each layer.

    Scales of activations stay as they are; the scale of each channel's weights makes its multiplier
    exact. Sums, products and pools of activations round their multipliers to the same width.

    Args:
        width: bits of x with its sign.
    Source: N2D2, CEA-LIST, activation scaling mode "fixed-point"; see docs/methods.md.
    """

    _: KW_ONLY
    width: int = Field(default=16, ge=4, le=32)

    @property
    def kind(self) -> str:
        """As a grid's spec holds it."""
        return f"fixed_point:{self.width}"


SCALES: dict[str, Any] = {
    "float": Float,
    "power_of_two": PowerOfTwo,
    "double_shift": DoubleShift,
    "fixed_point": FixedPoint,
}


def request_scale_kind(plan: QuantPlan, kind: str) -> QuantPlan:
    """The plan whose integer sites ask for ``kind``; weights of float ops keep float scales.

    Args:
        plan: without grids.
        kind: float | power_of_two | double_shift | fixed_point:<bits>.
    """
    grids = dict(plan.grids)
    for value, grid in plan.grid_of.items():
        spec = grids[grid]
        if isinstance(spec, QuantSpec) and spec.bits < 32 and value not in plan.weight_only:
            grids[grid] = replace(spec, scale_kind=kind)
    return replace(plan, grids=grids)


def constrain_plan_scales(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    """Weights' scales in the form that is asked for; codes that were made for others are dropped.

    Activations' scales are a power of two by now, where that is asked for: the calibrator's grid
    was moved there by what it costs the value.

    Args:
        model: the rewritten graph.
        plan: every grid is found.
    """
    values = by_name(model.graph)
    grids, codes = dict(plan.grids), dict(plan.codes)
    for site in plan.sites.values():
        found = grids.get(site.weight or "")
        if not isinstance(found, QuantParams) or found.spec.scale_kind == "float":
            continue
        if found is not plan.grids[site.weight or ""]:
            continue  # shared: it has the form its first reader needs
        ratio = None
        x, y = plan.params(site.inputs[0]), plan.params(site.output)
        if x is not None and y is not None:
            ratio = float(x.scale.astype(np.float64) / y.scale)
        array = plan.weight_overrides.get(site.weight or "", constant(values[site.weight or ""]))
        if array is None:
            raise AssertionError(f"{site.weight} has no data")
        grids[site.weight or ""] = constrain_weight_scale(array, found, ratio)
        codes.pop(site.weight or "", None)
    return replace(plan, grids=grids, codes=codes)
