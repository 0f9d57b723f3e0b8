"""Does the file compute what was simulated, layer by layer; and how much each layer loses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.execute.dynamic import exact_site, functions
from qtool.execute.exact import ExactKernels
from qtool.execute.executor import Executor
from qtool.execute.simulate import Simulation, constant_tensor
from qtool.graph import is_constant, nodes_by_name
from qtool.numerics import dequantize, quantize
from qtool.plan import QuantPlan
from qtool.protocols import Observe


@dataclass
class Count:
    """Codes compared, codes that differ, and the largest difference."""

    total: int = 0
    off: int = 0
    largest: int = 0

    def add(self, expected: torch.Tensor, got: np.ndarray) -> int:
        """Compare two arrays of codes; returns how many differ."""
        found = torch.from_numpy(got.astype(np.float32))
        same = (expected == found) | (expected.isnan() & found.isnan())  # inf - inf is no number
        difference = torch.where(same, 0.0, (expected - found).abs()).nan_to_num(1e9, 1e9)
        off = int(torch.count_nonzero(difference))
        self.total += difference.numel()
        self.off += off
        if off:
            self.largest = max(self.largest, int(difference.max()))
        return off

    @property
    def share(self) -> float:
        """Share of codes that differ."""
        return self.off / self.total if self.total else 0.0


@dataclass
class ParityCounts:
    """What parity found.

    Attributes:
        integer: values written by integer kernels.
        after_float: values that float ops between integer kernels computed before rounding.
        worst: value name -> codes that differ.
    """

    integer: Count = field(default_factory=Count)
    after_float: Count = field(default_factory=Count)
    worst: dict[str, int] = field(default_factory=dict)


def compare(
    model: ir.Model,
    plan: QuantPlan,
    folder: Path,
    names: Sequence[str],
    saved: int,
    kernels_of: Callable[[ir.Model, QuantPlan], Any] = ExactKernels,
) -> ParityCounts:
    """Recompute every layer from the file's own inputs to it, and count the codes that differ.

    Args:
        model: the rewritten float graph.
        plan: frozen.
        folder: holds ``0.npz`` ...: ``i:<input>`` and ``o<k>`` for the k-th name.
        names: what was captured.
        saved: how many captures there are.
        kernels_of: computes single layers: ExactKernels, or IntegerKernels.
    """
    counts = ParityCounts()
    kernels = kernels_of(model, plan)
    executor = Executor(model, instead=functions(plan))
    for k in range(saved):
        with np.load(folder / f"{k}.npz") as archive:
            inputs = {n[2:]: archive[n] for n in archive.files if n.startswith("i:")}
            seen = {name: archive[f"o{j}"] for j, name in enumerate(names)}
        _compare_one(model, plan, kernels, executor, inputs, seen, counts)
    return counts


def _compare_one(
    model: ir.Model,
    plan: QuantPlan,
    kernels: Any,
    executor: Executor,
    inputs: Mapping[str, np.ndarray],
    seen: Mapping[str, np.ndarray],
    counts: ParityCounts,
) -> None:
    codes = {
        n.removesuffix("_quantized"): a
        for n, a in seen.items()
        if n.endswith("_quantized") and a.dtype.kind in "iu"
    }
    feeds: dict[str, Any] = dict(inputs)

    def judge(count: Count, name: str, expected: torch.Tensor) -> None:
        if off := count.add(expected, codes[name]):
            counts.worst[name] = counts.worst.get(name, 0) + off

    for site in plan.sites.values():
        if any(v not in codes and v not in plan.codes for v in site.inputs):
            continue
        found = kernels.site(site, codes)
        if site.output in codes:
            judge(counts.integer, site.output, found)
            feeds[site.output] = _values(plan, site.output, codes)
        elif site.output in seen:
            counts.integer.add(*_as_codes(found, seen[site.output]))
            feeds[site.output] = seen[site.output]
    nodes = nodes_by_name(model.graph)
    for name in plan.passes:
        node = nodes[name]
        source = node.inputs[0].name if node.inputs[0] is not None else None
        if source not in codes:
            continue
        shapes = [v.name or "" for v in node.inputs[1:] if v is not None and not is_constant(v)]
        computed = executor(inputs, None, shapes) if shapes else {}
        moved = kernels.moved(name, codes[source], computed)
        for out, found in zip(node.outputs, moved, strict=True):
            if out.name in codes:
                judge(counts.integer, out.name, found)
                feeds[out.name] = _values(plan, out.name, codes)

    _compare_dynamic(model, plan, executor, seen, feeds, counts)
    rest = [v for v in codes if v not in feeds or v in inputs]
    with torch.inference_mode():
        floats = executor(feeds, _as_stored(plan), rest) if rest else {}
    for name in rest:
        params = plan.params(name)
        if params is not None:
            judge(counts.after_float, name, quantize(floats[name], params))


def _as_stored(plan: QuantPlan) -> Observe:
    """Lets float ops read their weights as the file widens them."""

    def observe(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        name = value.name or ""
        return constant_tensor(plan, name) if name in plan.stored else tensor

    return observe


def _compare_dynamic(
    model: ir.Model,
    plan: QuantPlan,
    executor: Executor,
    seen: Mapping[str, np.ndarray],
    feeds: dict[str, Any],
    counts: ParityCounts,
) -> None:
    """Products whose inputs got grids while the file ran; what they wrote is added to ``feeds``."""
    nodes = nodes_by_name(model.graph)

    def value_of(name: str) -> torch.Tensor:
        known = feeds.get(name, seen.get(name))
        if known is not None:
            return torch.tensor(known)
        return executor(feeds, _as_stored(plan), [name])[name]

    for site in plan.dynamic.values():
        first = site.outputs[0]
        if first not in seen:
            continue
        with torch.inference_mode():
            expected = exact_site(model, plan, site, value_of, torch.tensor(seen[first]))
        # An LSTM's gates are floats, and its state is rounded to 8 bits again.
        count, bits = (counts.after_float, 8) if site.op == "LSTM" else (counts.integer, 16)
        if off := count.add(*_as_codes(expected, seen[first], bits)):
            counts.worst[first] = counts.worst.get(first, 0) + off
        written = [v.name or "" for v in nodes[site.name].outputs]
        feeds.update({name: seen[name] for name in written if name in seen})


def _values(plan: QuantPlan, name: str, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    params = plan.params(name)
    if params is None:
        raise AssertionError(f"{name} has codes but no grid")
    return np.asarray(dequantize(codes[name].astype(np.float32), params), np.float32)


def _as_codes(
    expected: torch.Tensor, got: np.ndarray, bits: int = 16
) -> tuple[torch.Tensor, np.ndarray]:
    """Floats on a scale of their own range, so that they can be compared like codes."""
    step = max(float(np.abs(got).max()), 1e-30) / 2 ** (bits - 1)
    return (expected / step).round(), np.rint(got / np.float32(step))


@dataclass
class Noise:
    """Power of a layer's float output, and of its difference to the quantized layer."""

    signal: float = 0.0
    noise: float = 0.0

    @property
    def db(self) -> float | None:
        """Signal to noise in dB; None where nothing is lost or there is no signal."""
        if self.noise <= 0 or self.signal <= 0:
            return None
        return float(10 * np.log10(self.signal / self.noise))


def layer_noise(
    model: ir.Model, plan: QuantPlan, batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Noise]:
    """How much each weighted site loses by itself.

    Its float input is rounded to the grid, its weights and its output too, and the result compared
    with its float output. Errors of earlier layers are not in it.

    Returns:
        Site name -> power of signal and noise over all batches.
    """
    simulation, floats = Simulation(model, plan), Executor(model)
    ends = {s.name: (s.inputs[0], s.output) for s in plan.sites.values() if s.weight is not None}
    nodes = nodes_by_name(model.graph)
    for dynamic in plan.dynamic.values():
        named = next(v.name for v in nodes[dynamic.name].outputs if v.name)
        ends[dynamic.name] = (dynamic.input, named or "")
    found = {name: Noise() for name in ends}
    wanted = {value for pair in ends.values() for value in pair}
    for batch in batches:
        kept: dict[str, torch.Tensor] = {}

        def keep(value: ir.Value, tensor: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            if value.name in wanted:
                kept[value.name] = tensor
            return tensor

        with torch.inference_mode():
            floats(batch, keep)
        for name, (read, written) in ends.items():
            float_out = kept[written]
            out = simulation({**batch, read: kept[read]}, [written])[written]
            part = found[name]
            part.signal += float(float_out.double().square().sum())
            part.noise += float((float_out - out).double().square().sum())
    return found
