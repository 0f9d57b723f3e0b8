"""Round weights and biases to their final integers, once: later stages only read codes.

Source: Jacob et al. 2018, sec. 2.4, arXiv:1712.05877: bias codes are int32 on the grid s_x * s_w,
zero point 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.errors import DataError
from qtool.graph.queries import by_name, is_constant
from qtool.quant.chunked import codes_of
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import (
    NEGLIGIBLE_SCALE,
    PerChannel,
    QuantParams,
    QuantSpec,
    align,
    dequantize,
    quantize,
)
from qtool.quant.scale_formats import ceil_log2

# Half the int32 range stays free for the products the bias is added to.
BIAS_LIMIT = 2**30
# float32, in which runtimes scale the sum, holds all whole numbers up to here.
EXACT_LIMIT = 2**23


def freeze(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    """Compute the codes of all weights, biases and constant operands.

    A bias that would leave the int32 range widens the weight scale of its channel first (a channel
    of near-zero weights with a large bias); the plan's log records it. A channel whose weights are
    all zero gets the scale that gives its bias the finest steps.

    Args:
        model: the rewritten graph.
        plan: every grid of an activation or weight is a QuantParams.

    Returns:
        The plan with codes, grids of biases and log.

    Raises:
        DataError: a weight, bias or constant operand is NaN or infinite (names the initializer).
    """
    values = by_name(model.graph)
    grids, codes = dict(plan.grids), dict(plan.codes)
    notes: list[str] = []
    for name in _fit_to_biases(values, plan, grids, notes):
        if name in codes:  # by training or a scheme: the float weights are their dequantized values
            weights = dequantize(codes[name], _params(plan.grids, name))
            codes[name] = codes_of(weights, _params(grids, name))
    for site in plan.sites.values():
        if site.weight is None:
            continue
        if site.weight not in codes:
            params = _params(grids, site.weight)
            codes[site.weight] = codes_of(_finite_weight(values, plan, site.weight), params)
        if site.bias is not None:
            params = bias_params(plan, grids, site)
            grids[site.bias] = params
            bias = _finite_weight(values, plan, site.bias).astype(np.float64)
            codes[site.bias] = quantize(bias, params).astype(np.int32)
    for name in plan.grid_of:
        if name in codes or not is_constant(values[name]):
            continue
        params = _params(grids, plan.grid_of[name])
        codes[name] = codes_of(_finite_weight(values, plan, name), params)
    frozen = replace(plan, grids=grids, codes=codes)
    _check_masks(frozen)
    for line in notes:
        frozen = frozen.note(line)
    return frozen


def _check_masks(plan: QuantPlan) -> None:
    """Raise where a pruned weight is not the code of 0: a step has changed it."""
    for name, mask in plan.masks.items():
        if name in plan.codes:
            codes = plan.codes[name]
            zero = np.broadcast_to(align(plan.qparams(name), codes)[1], codes.shape)
            if np.any(codes[~mask] != zero[~mask]):
                raise AssertionError(f"pruned weights of {name} have codes other than that of 0")


def bias_params(plan: QuantPlan, grids: dict, site: Site) -> QuantParams:
    """Return the bias grid of a site: scale s_x * s_w in float32, shape [C] or []."""
    x = _params(grids, plan.grid_of[site.inputs[0]])
    w = _params(grids, site.weight or "")
    scale = x.scale * w.scale
    spec = grids[site.bias]
    spec = spec.spec if isinstance(spec, QuantParams) else spec
    return QuantParams(spec, scale, np.zeros(scale.shape, np.int32))


def _fit_to_biases(values: dict, plan: QuantPlan, grids: dict, notes: list[str]) -> Sequence[str]:
    """Widen the weight scales in ``grids`` on which a bias would leave the int32 range.

    Args:
        values: name -> value of the graph.
        plan: the plan before freezing.
        grids: grid id -> grid, changed in place.
        notes: lines for the plan's log, extended in place.

    Returns:
        Names of the weights whose codes must be computed again.
    """
    changed, fitted = [], set()
    for site in plan.sites.values():
        if site.bias is None or site.weight is None:
            continue
        bias = np.abs(_finite_weight(values, plan, site.bias).astype(np.float64))
        x, w = _params(grids, plan.grid_of[site.inputs[0]]), _params(grids, site.weight)
        least = bias / (BIAS_LIMIT * x.scale.astype(np.float64))
        if not isinstance(w.spec.granularity, PerChannel):
            least = least.max()
        empty = _empty(values, plan, site.weight, w) & (least > 0)
        if np.any(empty) and w.spec.scale_kind == "float":
            finest = np.maximum(least * (BIAS_LIMIT / EXACT_LIMIT), NEGLIGIBLE_SCALE)
            if site.weight in fitted:  # tied weights: the scale also fits the bias of another layer
                finest = np.maximum(finest, w.scale)
            w = replace(w, scale=np.where(empty, finest, w.scale).astype(np.float32))
            grids[site.weight] = w
            fitted.add(site.weight)
        low = least > w.scale
        if np.any(low):
            # The next float32 up: rounding to float32 must not make the scale too small again.
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
    """Return a mask, shape of the scale, of the channels whose weights are all zero."""
    codes = plan.codes.get(name)
    rows = _finite_weight(values, plan, name) if codes is None else codes
    granularity = w.spec.granularity
    if isinstance(granularity, PerChannel):
        return np.asarray(~np.moveaxis(rows, granularity.axis, 0).reshape(len(w.scale), -1).any(1))
    return np.asarray(not rows.any())


def _params(grids: Mapping[str, QuantSpec | QuantParams], name: str) -> QuantParams:
    grid = grids[name]
    if not isinstance(grid, QuantParams):
        raise AssertionError(f"the grid of {name} was not calibrated")
    return grid


def _finite_weight(values: dict, plan: QuantPlan, name: str) -> np.ndarray:
    array = plan.weight(name, values[name])
    if not np.isfinite(array).all():
        raise DataError(
            f'the initializer "{name}" holds NaN or infinite numbers; repair it or export it again'
        )
    return array
