"""Rounding, once: final integers of weights and biases. Nothing behind this module rounds.

Source: Jacob et al. 2018, sec. 2.4, arXiv:1712.05877: bias codes are int32 on the grid s_x * s_w,
zero point 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.errors import DataError
from qtool.graph.queries import by_name, constant
from qtool.quant.chunked import codes_of
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import (
    NEGLIGIBLE_SCALE,
    PerChannel,
    QuantParams,
    QuantSpec,
    dequantize,
    quantize,
)
from qtool.quant.scale_formats import ceil_log2

# Half the int32 range stays free for the products the bias is added to.
BIAS_LIMIT = 2**30
# float32, in which runtimes scale the sum, holds all whole numbers up to here.
EXACT_LIMIT = 2**23


def freeze(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    """Compute all codes.

    A bias that would leave the int32 range widens the weight scale of its channel first (a channel
    of near-zero weights with a large bias); the plan's log says where. A channel without any
    weights, whose scale means nothing else, gets the one that its bias is finest on.

    Args:
        model: the rewritten graph.
        plan: every grid of an activation or weight is found.

    Raises:
        DataError: a weight, bias or constant operand is NaN or infinite (names the initializer).
    """
    values = by_name(model.graph)
    grids, codes = dict(plan.grids), dict(plan.codes)
    notes: list[str] = []
    for name in _fit_to_biases(values, plan, grids, notes):
        if name in codes:  # training or a scheme found them; no array holds what they mean now
            meant = dequantize(codes[name], _params(plan.grids, name))
            codes[name] = codes_of(meant, _params(grids, name))
    for site in plan.sites.values():
        if site.weight is None:
            continue
        if site.weight not in codes:
            params = _params(grids, site.weight)
            codes[site.weight] = codes_of(_array(values, plan, site.weight), params)
        if site.bias is not None:
            params = bias_params(plan, grids, site)
            grids[site.bias] = params
            bias = _array(values, plan, site.bias).astype(np.float64)
            codes[site.bias] = quantize(bias, params).astype(np.int32)
    for name in plan.grid_of:
        if name in codes or constant(values[name]) is None:
            continue
        params = _params(grids, plan.grid_of[name])
        codes[name] = codes_of(_array(values, plan, name), params)
    frozen = replace(plan, grids=grids, codes=codes)
    for line in notes:
        frozen = frozen.note(line)
    return frozen


def bias_params(plan: QuantPlan, grids: dict, site: Site) -> QuantParams:
    """The bias grid of a site: scale s_x * s_w in float32, shape [C] or []."""
    x = _params(grids, plan.grid_of[site.inputs[0]])
    w = _params(grids, site.weight or "")
    scale = x.scale * w.scale
    spec = grids[site.bias]
    spec = spec.spec if isinstance(spec, QuantParams) else spec
    return QuantParams(spec, scale, np.zeros(scale.shape, np.int32))


def _fit_to_biases(values: dict, plan: QuantPlan, grids: dict, notes: list[str]) -> Sequence[str]:
    """Change the grids of weights where biases need it; returns whose codes must be made anew."""
    changed, fitted = [], set()
    for site in plan.sites.values():
        if site.bias is None or site.weight is None:
            continue
        bias = np.abs(_array(values, plan, site.bias).astype(np.float64))
        x, w = _params(grids, plan.grid_of[site.inputs[0]]), _params(grids, site.weight)
        least = bias / (BIAS_LIMIT * x.scale.astype(np.float64))
        if not isinstance(w.spec.granularity, PerChannel):
            least = least.max()
        empty = _empty(values, plan, site.weight, w) & (least > 0)
        if np.any(empty) and w.spec.scale_kind == "float":
            finest = np.maximum(least * (BIAS_LIMIT / EXACT_LIMIT), NEGLIGIBLE_SCALE)
            if site.weight in fitted:  # tied weights: another bias has been here
                finest = np.maximum(finest, w.scale)
            w = replace(w, scale=np.where(empty, finest, w.scale).astype(np.float32))
            grids[site.weight] = w
            fitted.add(site.weight)
        low = least > w.scale
        if np.any(low):
            # The next float32 up, so that the rounded scale cannot fall below the need again.
            wider = np.nextafter(least.astype(np.float32), np.float32(np.inf))
            if w.spec.scale_kind != "float":  # a power of two times itself keeps its form
                wider = np.ldexp(w.scale, ceil_log2(wider.astype(np.float64) / w.scale))
            grids[site.weight] = replace(w, scale=np.where(low, wider, w.scale).astype(np.float32))
            changed.append(site.weight)
            notes.append(
                f"{site.name}: {int(np.sum(low))} weight scales widened, since the bias would "
                "leave the int32 range"
            )
    return list(dict.fromkeys(changed))  # tied weights may have changed twice


def _empty(values: dict, plan: QuantPlan, name: str, w: QuantParams) -> np.ndarray:
    """Where no weight is left of those that one scale serves, shape of the scale."""
    known = plan.codes.get(name)
    rows = _array(values, plan, name) if known is None else known
    granularity = w.spec.granularity
    if isinstance(granularity, PerChannel):
        return np.asarray(~np.moveaxis(rows, granularity.axis, 0).reshape(len(w.scale), -1).any(1))
    return np.asarray(not rows.any())


def _params(grids: Mapping[str, QuantSpec | QuantParams], name: str) -> QuantParams:
    grid = grids[name]
    if not isinstance(grid, QuantParams):
        raise AssertionError(f"the grid of {name} was not calibrated")
    return grid


def _array(values: dict, plan: QuantPlan, name: str) -> np.ndarray:
    array = plan.weight_overrides.get(name, constant(values[name]))
    if array is None:
        raise AssertionError(f"{name} has no data")
    if not np.isfinite(array).all():
        raise DataError(
            f'the initializer "{name}" holds NaN or infinite numbers; repair it or export it again'
        )
    return array
