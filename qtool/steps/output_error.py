"""Widen the ranges of linear layers' inputs by the error of their outputs.

A few elements of an encoder's activations are a hundred times larger than the rest (massive
activations). The squared error of the values favours a range that clips them, yet the network's
result depends on these elements; the error of the layer's output shows it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

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

# Batches that decide, and rows of an input in each.
BATCHES = 8
MAX_ROWS = 1024


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
        batches: calibration samples; the first BATCHES are read.
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
    if not searched:
        return plan
    inputs = sorted({value for grid in searched for value, _ in readers[grid]})
    errors = _Errors(_weights(model), readers, searched)
    with _session(model, inputs, threads) as session:
        for feeds in islice(batches, BATCHES):
            errors.add({**feeds, **(session(feeds) if session is not None else {})})
    best = {grid: errors.best(grid) for grid in searched}
    plan = replace(
        plan, grids={**plan.grids, **{grid: searched[grid][k] for grid, k in best.items()}}
    )
    widened = sum(k > 0 for k in best.values())
    note = f"ranges of {widened} inputs of linear layers widened by the error of the outputs"
    return plan.note(note) if widened else plan


@dataclass(frozen=True)
class _Errors:
    """Sums over batches of the squared noise and signal at the outputs of linear layers.

    Attributes:
        weights: node name -> [K, N].
        readers: grid -> (input, node) of the layers that read it.
        searched: grid -> its candidates.
        noise: (grid, node) -> sum for each candidate, float64.
        signal: (grid, node) -> sum.
    """

    weights: Mapping[str, np.ndarray]
    readers: Mapping[str, list[tuple[str, str]]]
    searched: Mapping[str, list[QuantParams]]
    noise: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    signal: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the errors of one batch."""
        for grid, candidates in self.searched.items():
            for value, node in self.readers[grid]:
                x, weight, key = _rows(arrays[value]), self.weights[node], (grid, node)
                noise = [
                    _power((x - fake_quantize(x, params)).astype(np.float32) @ weight)
                    for params in candidates
                ]
                self.noise[key] = self.noise.get(key, np.zeros(len(noise))) + noise
                self.signal[key] = self.signal.get(key, 0.0) + _power(x @ weight)

    def best(self, grid: str) -> int:
        """Return the position of the candidate with the least error; 0 where nothing was added."""
        keys = [key for key in self.noise if key[0] == grid]
        total = sum(self.noise[key] / max(self.signal[key], 1e-30) for key in keys)
        return int(np.argmin(total)) if keys else 0


def _power(array: np.ndarray) -> float:
    return float(np.square(array, dtype=np.float64).sum())


@contextmanager
def _session(model: ir.Model, names: list[str], threads: int | None) -> Iterator[OrtSession | None]:
    """Open a session that returns the named values; None where all are graph inputs."""
    values = by_name(model.graph)
    computed = [name for name in names if values[name].producer() is not None]
    if not computed:
        yield None
        return
    with OrtSession(model, computed, threads) as session:
        yield session


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
        if site.op not in LINEAR or site.inputs[0] not in plan.grid_of:
            continue
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
    if spec.scale_kind in ("power_of_two", "double_shift"):
        return [params]  # a wider range would have another form of scale
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
