"""Does the file compute what was simulated, layer by layer; and how much each layer loses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import constant, is_constant, is_float, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import QuantParams, align, dequantize, quantize
from qtool.runtime.executor import Executor
from qtool.simulation.dynamic import exact_site, functions
from qtool.simulation.fake_quant import constant_tensor, raw_edges
from qtool.simulation.ort_kernels import ExactKernels

# Integer kernels of ONNX Runtime that write floats.
WRITE_FLOATS = ("Gemm", "MatMul", "GlobalAveragePool")


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
        wide: values on grids of more than 8 bits, which are computed in floats throughout.
        worst: value name -> codes that differ.
    """

    integer: Count = field(default_factory=Count)
    after_float: Count = field(default_factory=Count)
    wide: Count = field(default_factory=Count)
    worst: dict[str, int] = field(default_factory=dict)


def compare(
    model: ir.Model,
    plan: QuantPlan,
    folder: Path,
    names: Mapping[str, str],
    saved: int,
    kernels_of: Callable[[ir.Model, QuantPlan], Any] = ExactKernels,
    in_floats: bool = False,
) -> ParityCounts:
    """Recompute every layer from the file's own inputs to it, and count the codes that differ.

    Args:
        model: the rewritten float graph.
        plan: frozen.
        folder: holds ``0.npz`` ...: ``i:<input>``, ``c:<input>`` where codes were fed, and ``o<k>``
            for the k-th name.
        names: what was captured, and which of the plan's values it is.
        saved: how many captures there are.
        kernels_of: computes single layers: ExactKernels, or IntegerKernels.
        in_floats: the file computes on values, not on codes (QONNX).
    """
    counts = ParityCounts()
    kernels = kernels_of(model, plan)
    executor = Executor(model, node_functions=functions(plan))
    for k in range(saved):
        with np.load(folder / f"{k}.npz") as archive:
            inputs, fed = (
                {n[2:]: archive[n] for n in archive.files if n.startswith(kind)}
                for kind in ("i:", "c:")
            )
            seen = {name: archive[f"o{j}"] for j, name in enumerate(names)}
        written = {
            value: seen[name]
            for name, value in names.items()
            if value in plan.grid_of and (in_floats or seen[name].dtype.kind in "iu")
        }
        codes = {v: _codes(plan, v, array) for v, array in (written | fed).items()}
        sample = _Sample(model, plan, kernels, executor, counts, in_floats, inputs, seen, codes)
        sample.sites()
        sample.passes()
        sample.dynamic()
        sample.rest()
    return counts


class _Sample:
    """One batch: what the file was seen to compute, and what of it was judged."""

    def __init__(
        self,
        model: ir.Model,
        plan: QuantPlan,
        kernels: Any,
        executor: Executor,
        counts: ParityCounts,
        in_floats: bool,
        inputs: Mapping[str, np.ndarray],
        seen: Mapping[str, np.ndarray],
        codes: Mapping[str, np.ndarray],
    ) -> None:
        self.model, self.plan, self.kernels, self.executor = model, plan, kernels, executor
        self.counts, self.in_floats, self.inputs, self.seen = counts, in_floats, inputs, seen
        self.codes = codes
        self.feeds: dict[str, Any] = dict(inputs)

    def sites(self) -> None:
        """Judge what integer sites wrote; those that the file computes in floats, in floats."""
        for site in self.plan.sites.values():
            if any(v not in self.codes and v not in self.plan.codes for v in site.inputs):
                continue
            exact = not self.in_floats and self._on_codes(site)
            if not exact and not self._fed(site):
                continue
            found = self.kernels.site(site, self.codes) if exact else self._in_floats(site)
            if site.output in self.codes:
                self._judge(self.counts.integer if exact else None, site.output, found)
            elif site.output in self.seen:
                count = self.counts.integer if exact else self.counts.after_float
                count.add(*_as_codes(found, self.seen[site.output]))
                self.feeds[site.output] = self.seen[site.output]

    def passes(self) -> None:
        """Judge what ops moved."""
        nodes = nodes_by_name(self.model.graph)
        for name in self.plan.data_movement_ops:
            node = nodes[name]
            source = (node.inputs[0].name if node.inputs[0] is not None else None) or ""
            if source not in self.codes:
                continue
            shapes = [v.name or "" for v in node.inputs[1:] if v is not None and not is_constant(v)]
            computed = self.executor(self.inputs, None, shapes) if shapes else {}
            moved = self.kernels.moved(name, self.codes[source], computed)
            for out, found in zip(node.outputs, moved, strict=True):
                if (out.name or "") in self.codes:
                    self._judge(self.counts.integer, out.name or "", found)

    def dynamic(self) -> None:
        """Judge products whose inputs got grids while the file ran."""
        nodes = nodes_by_name(self.model.graph)
        for site in self.plan.dynamic.values():
            first = site.outputs[0]
            if first not in self.seen:
                continue
            got = torch.tensor(self.seen[first])
            with torch.inference_mode():
                expected = exact_site(self.model, self.plan, site, self._value, got)
            # An LSTM's gates are floats, and its state is rounded to 8 bits again.
            lstm = site.op == "LSTM"
            count = self.counts.after_float if lstm else self.counts.integer
            compared = (_as_codes if lstm else _in_steps)(expected, self.seen[first])
            if off := count.add(*compared):
                self.counts.worst[first] = self.counts.worst.get(first, 0) + off
            written = [v.name or "" for v in nodes[site.name].outputs]
            self.feeds.update({name: self.seen[name] for name in written if name in self.seen})

    def _value(self, name: str) -> torch.Tensor:
        known = self.feeds.get(name, self.seen.get(name))
        if known is not None:
            return torch.tensor(known)
        return self.executor(self.feeds, self._constant, [name])[name]

    def rest(self) -> None:
        """Judge what float ops computed before it was rounded."""
        given = [v for v in self.codes if v in self.inputs]
        rest = [v for v in self.codes if v not in self.feeds]
        floats = {name: torch.from_numpy(np.asarray(self.inputs[name])) for name in given}
        with torch.inference_mode():
            if rest:
                edges = raw_edges(self.model, self.plan)
                floats |= self.executor(self.feeds, self._read, rest, edges)
        for name in (*given, *rest):
            params = self.plan.params(name)
            if params is not None:
                self._judge(None, name, self._rounded(floats[name], params))

    def _read(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        """What readers of codes see: weights as the file has them, and inputs rounded."""
        name = value.name or ""
        if name in self.inputs and name in self.codes:
            return torch.from_numpy(_values(self.plan, name, self.codes))
        # In a QONNX file nothing shows what moved codes: a site behind them is judged here.
        return (self._as_emitted if self.in_floats else self._constant)(value, tensor)

    def _judge(self, count: Count | None, name: str, expected: torch.Tensor) -> None:
        spec = self.plan.spec(name)
        if count is None:  # computed in floats: what may differ depends on how fine the steps are
            wide = spec is not None and spec.bits > 8
            count = self.counts.wide if wide else self.counts.after_float
        if off := count.add(expected, self.codes[name]):
            self.counts.worst[name] = self.counts.worst.get(name, 0) + off
        self.feeds[name] = _values(self.plan, name, self.codes)

    def _on_codes(self, site: Site) -> bool:
        """False for a site that the file computes in floats, whatever lies around it.

        That is one with an operand or a bias in floats, or with codes wider than 8 bits, or one
        that writes floats where no integer kernel does.
        """
        if site.output not in self.plan.grid_of and site.op not in WRITE_FLOATS:
            return False
        node = self.kernels.nodes[site.name]
        read = [v.name or "" for v in node.inputs if v is not None and is_float(v)]
        if any(self.plan.spec(name) is None for name in read):
            return False
        specs = [self.plan.spec(name) for name in (*site.inputs, site.output)]
        return all(spec is None or spec.bits <= 8 for spec in specs)

    def _fed(self, site: Site) -> bool:
        """Whether the floats that a site reads beside codes were seen."""
        read = self.kernels.nodes[site.name].inputs
        named = [v.name for v in read if v is not None and not is_constant(v) and is_float(v)]
        return all(name in self.codes or name in self.seen for name in named)

    def _in_floats(self, site: Site) -> torch.Tensor:
        """A site from its own inputs on torch: codes where it rounds, else values."""
        read = [v.name or "" for v in self.kernels.nodes[site.name].inputs if v is not None]
        feeds = {
            name: _values(self.plan, name, self.codes) if name in self.codes else self.seen[name]
            for name in read
            if name in self.codes or name in self.seen
        }
        bias = self._rounded_bias(site)

        def emitted(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
            return bias.get(value.name or "", self._as_emitted(value, tensor))

        with torch.inference_mode():
            found = self.executor(feeds, emitted, [site.output])[site.output]
        params = self.plan.params(site.output)
        return found if params is None else self._rounded(found, params)

    def _rounded_bias(self, site: Site) -> dict[str, torch.Tensor]:
        """A float bias as ONNX Runtime uses it: rounded to int32 on the grid s_x * s_w.

        It does so where the layer writes codes, and where it does not, not.
        """
        x, w = self.plan.params(site.inputs[0]), self.plan.params(site.weight or "")
        read = self.kernels.nodes[site.name].inputs
        value = read[2] if site.op in ("Conv", "Gemm") and len(read) > 2 else None
        array = constant(value)
        if value is None or array is None or x is None or w is None or site.bias is not None:
            return {}
        if site.output not in self.plan.grid_of:
            return {}
        scale = x.scale * w.scale
        return {value.name or "": torch.from_numpy(np.rint(array / scale) * scale)}

    def _rounded(self, found: torch.Tensor, params: QuantParams) -> torch.Tensor:
        if not self.in_floats:
            return quantize(found, params)
        # QONNX adds the zero point before it rounds.
        scale, zero = align(params, found)
        return (found / scale + zero).clamp(params.spec.qmin, params.spec.qmax).round()

    def _constant(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        name = value.name or ""
        return constant_tensor(self.plan, name) if name in self.plan.weight_only else tensor

    def _as_emitted(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        name = value.name or ""
        return constant_tensor(self.plan, name) if name in self.plan.codes else tensor


def _codes(plan: QuantPlan, name: str, array: np.ndarray) -> np.ndarray:
    """Codes of a captured value, which is codes or, in QONNX files, lies on the grid."""
    params = plan.params(name)
    if params is None:
        raise AssertionError(f"{name} was captured but its grid was not found")
    return array if array.dtype.kind in "iu" else quantize(array, params)


def _values(plan: QuantPlan, name: str, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    params = plan.params(name)
    if params is None:
        raise AssertionError(f"{name} has codes but no grid")
    return np.asarray(dequantize(codes[name].astype(np.float32), params), np.float32)


def _step(got: np.ndarray, bits: int) -> float:
    """The step of a grid of so many bits over the array's own range."""
    return max(float(np.abs(got).max()), 1e-30) / 2 ** (bits - 1)


def _in_steps(expected: torch.Tensor, got: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """How many steps of 16 bits floats lie apart, beside zeros, for :class:`Count`.

    Rounded each by itself, floats that differ in their last bit could fall into two codes.
    """
    found = torch.from_numpy(np.asarray(got, np.float32))
    same = (expected == found) | (expected.isnan() & found.isnan())
    apart = torch.where(same, 0.0, (expected - found) / _step(got, 16)).round()
    return apart, np.zeros(got.shape, np.float32)


def _as_codes(expected: torch.Tensor, got: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Floats as 8-bit codes of their own range; finer differences show in the share of them."""
    step = _step(got, 8)
    return (expected / step).round(), np.rint(got / np.float32(step))
