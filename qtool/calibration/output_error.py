"""Widen the ranges of linear layers' inputs by the error of their outputs.

A few elements of an encoder's activations are a hundred times larger than the rest (massive
activations). The squared error of the values favours a range that clips them, yet the network's
result depends on these elements; the error of the layer's output shows it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.calibration.statistics import Stats
from qtool.graph.queries import attribute, by_name, constant, nodes_by_name
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams, fake_quantize, params_from_range
from qtool.runtime.ort_session import OrtSession

LINEAR = ("Gemm", "MatMul")

# Ranges tried, from the estimated one to all observed values, in equal ratios.
CANDIDATES = 6

# A range that leaves out less than this share of the observed one is not searched again.
CLIPPED = 0.1

# Rows of an input that decide; more do not change the choice.
MAX_ROWS = 2048


def widen_by_output(
    model: ir.Model,
    plan: QuantPlan,
    stats: Mapping[str, Stats],
    batches: Iterable[Mapping[str, np.ndarray]],
    threads: int | None = None,
) -> QuantPlan:
    """Choose between clipped and full range by the output error of Gemm and MatMul.

    minimize over ranges r: sum over readers of |(x - q_r(x)) W|^2 / |x W|^2

    Source: Wu et al. 2020, EasyQuant, sec. 3.2, arXiv:2006.16669; for massive activations Sun et
        al. 2024, arXiv:2402.17762. Departure: the squared error replaces the cosine, and only
        linear layers' clipped inputs are searched.

    Args:
        model: the rewritten float graph.
        plan: with calibrated grids.
        stats: value name -> statistics of the calibration pass.
        batches: calibration samples; the first is read.
        threads: of ONNX Runtime; None for its default.

    Returns:
        The plan with the chosen grids and a note where one changed.
    """
    ranges = _merged(plan, stats)
    readers = {
        grid: names for grid, names in _linear_readers(model, plan).items() if grid in ranges
    }
    searched = {
        grid: candidates
        for grid in readers
        if len(candidates := _candidates(plan.grids[grid], *ranges[grid])) > 1
    }
    feeds = next(iter(batches), None) if searched else None
    if feeds is None:
        return plan
    inputs = sorted({value for grid in searched for value, _ in readers[grid]})
    arrays, weights = _inputs(model, inputs, feeds, threads), _weights(model)
    grids, widened = dict(plan.grids), 0
    for grid, candidates in searched.items():
        pairs = [(_rows(arrays[value]), weights[node]) for value, node in readers[grid]]
        errors = [sum(_error(x, w, params) for x, w in pairs) for params in candidates]
        best = int(np.argmin(errors))
        widened += best > 0
        grids[grid] = candidates[best]
    note = f"ranges of {widened} inputs of linear layers widened by the error of the outputs"
    plan = replace(plan, grids=grids)
    return plan.note(note) if widened else plan


def _inputs(
    model: ir.Model, names: list[str], feeds: Mapping[str, np.ndarray], threads: int | None
) -> dict[str, np.ndarray]:
    """Return the named values of the float graph; some may be graph inputs."""
    values = by_name(model.graph)
    computed = [name for name in names if values[name].producer() is not None]
    if not computed:
        return dict(feeds)
    with OrtSession(model, computed, threads) as session:
        return {**feeds, **session(feeds)}


def _merged(plan: QuantPlan, stats: Mapping[str, Stats]) -> dict[str, tuple[float, float]]:
    """Return the observed range of each grid, containing zero."""
    ranges: dict[str, tuple[float, float]] = {}
    for name, part in stats.items():
        lo, hi = ranges.get(plan.grid_of[name], (0.0, 0.0))
        ranges[plan.grid_of[name]] = min(lo, part.lo), max(hi, part.hi)
    return ranges


def _linear_readers(model: ir.Model, plan: QuantPlan) -> dict[str, list[tuple[str, str]]]:
    """Map each grid to (input, node) of the linear layers that read it."""
    nodes = nodes_by_name(model.graph)
    readers: dict[str, list[tuple[str, str]]] = {}
    for site in plan.sites.values():
        if site.op in LINEAR and site.weight is not None and site.inputs[0] in plan.grid_of:
            if constant(nodes[site.name].inputs[1]) is not None:
                grid = plan.grid_of[site.inputs[0]]
                readers.setdefault(grid, []).append((site.inputs[0], site.name))
    return readers


def _weights(model: ir.Model) -> dict[str, np.ndarray]:
    """Map each linear node with constant weights to its weight as [K, N]."""
    weights = {}
    for node in model.graph:
        weight = constant(node.inputs[1]) if node.op_type in LINEAR else None
        if weight is not None and node.name:
            weights[node.name] = weight.T if attribute(node, "transB", 0) else weight
    return weights


def _candidates(params: object, low: float, high: float) -> list[QuantParams]:
    """Return the grid and wider ones up to the observed range; it alone if it clips little."""
    if not isinstance(params, QuantParams) or params.scale.size != 1:
        return []
    spec = params.spec
    start = [(code - params.zero_point) * float(params.scale) for code in (spec.qmin, spec.qmax)]
    clip = min(float(start[0]), 0.0), max(float(start[1]), 0.0)
    if low >= clip[0] * (1 + CLIPPED) and high <= clip[1] * (1 + CLIPPED):
        return [params]
    shares = np.arange(1, CANDIDATES + 1) / CANDIDATES
    pairs = [(_between(clip[0], low, k), _between(clip[1], high, k)) for k in shares]
    return [params, *(params_from_range(lo, hi, spec) for lo, hi in pairs)]


def _between(clipped: float, observed: float, share: float) -> float:
    """Return the limit at a share of the way from the clipped to the observed one, in ratios."""
    if not 0 < clipped * observed < observed**2:
        return observed  # nothing is clipped here, or there is no ratio
    return float(observed * (clipped / observed) ** (1 - share))


def _rows(array: np.ndarray) -> np.ndarray:
    rows = array.reshape(-1, array.shape[-1])
    return np.asarray(rows[:: max(1, len(rows) // MAX_ROWS)])


def _error(x: np.ndarray, weight: np.ndarray, params: QuantParams) -> float:
    """Return |(x - q(x)) W|^2 / |x W|^2."""
    noise = (x - fake_quantize(x, params)).astype(np.float32) @ weight
    signal = x @ weight
    return float(np.square(noise).sum() / max(float(np.square(signal).sum()), 1e-30))
