"""Parity of the emitted file and the simulation: compare their codes layer by layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import is_constant, is_float, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import dequantize, quantize
from qtool.runtime.executor import Executor
from qtool.simulation.dynamic import dynamic_functions, dynamic_site_output
from qtool.simulation.fake_quant import raw_edges
from qtool.simulation.float_sites import FloatSites
from qtool.simulation.ort_kernels import OrtKernels
from qtool.simulation.site_kernels import SiteKernels

# Operators with an integer kernel in ONNX Runtime that writes floats: QGemm without an output
# scale, MatMulIntegerToFloat, and the MatMulInteger that stands for a GlobalAveragePool.
WRITE_FLOATS = ("Gemm", "MatMul", "GlobalAveragePool")


@dataclass
class Count:
    """Codes compared, codes that differ, and the largest difference."""

    total: int = 0
    off: int = 0
    largest: int = 0

    def add(self, expected: torch.Tensor, got: np.ndarray) -> int:
        """Compare two arrays of codes; return the number of codes that differ."""
        actual = torch.from_numpy(got.astype(np.float32))
        same = (expected == actual) | (expected.isnan() & actual.isnan())  # inf - inf is NaN
        # A NaN or infinity on one side only counts as a difference past every limit.
        difference = torch.where(same, 0.0, (expected - actual).abs()).nan_to_num(1e9, 1e9)
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
    """Counts of compared codes, apart for each limit.

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

    def add(self, count: Count, name: str, expected: torch.Tensor, got: np.ndarray) -> None:
        """Add the codes of the value ``name`` to one of the counts, and to ``worst``."""
        if off := count.add(expected, got):
            self.worst[name] = self.worst.get(name, 0) + off


def compare(
    model: ir.Model,
    plan: QuantPlan,
    folder: Path,
    names: Mapping[str, str],
    saved: int,
    kernels_of: Callable[[ir.Model, QuantPlan], SiteKernels] = OrtKernels,
    in_floats: bool = False,
) -> ParityCounts:
    """Recompute every layer from the file's own inputs to it, and count the codes that differ.

    Args:
        model: the rewritten float graph.
        plan: frozen.
        folder: holds ``0.npz`` ...: ``i:<input>``, ``c:<input>`` where codes were fed, and ``o<k>``
            for the k-th name.
        names: captured value of the file -> value of the plan.
        saved: number of captures.
        kernels_of: creates the kernels of single layers: OrtKernels, or IntegerKernels.
        in_floats: the file computes on values, not on codes (QONNX).
    """
    executor = Executor(model, node_functions=dynamic_functions(plan))
    reference = _Reference(
        model, plan, kernels_of(model, plan), FloatSites(model, plan, executor, qonnx=in_floats)
    )
    counts = ParityCounts()
    for k in range(saved):
        captures = Captures.load(folder / f"{k}.npz", plan, names, in_floats)
        batch = _BatchComparison(reference, captures, counts)
        # Sites first: what they leave uncompared was computed by float operators.
        batch.sites()
        batch.data_movement()
        batch.dynamic()
        batch.float_values()
    return counts


@dataclass(frozen=True)
class Captures:
    """Arrays of one batch that the file read and wrote.

    Attributes:
        inputs: of the graph, floats, by the plan's names.
        outputs: every captured array by the file's name of it: codes or floats.
        codes: the codes among inputs and outputs, by the plan's names.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    codes: Mapping[str, np.ndarray]

    @classmethod
    def load(
        cls, path: Path, plan: QuantPlan, names: Mapping[str, str], in_floats: bool
    ) -> "Captures":
        """Read the captures of one batch; see :func:`compare` for the arguments."""
        with np.load(path) as archive:
            inputs, fed_codes = (
                {n[2:]: archive[n] for n in archive.files if n.startswith(kind)}
                for kind in ("i:", "c:")
            )
            outputs = {name: archive[f"o{j}"] for j, name in enumerate(names)}
        written = {
            value: outputs[name]
            for name, value in names.items()
            if value in plan.grid_of and (in_floats or outputs[name].dtype.kind in "iu")
        }
        codes = {v: _codes(plan, v, array) for v, array in (written | fed_codes).items()}
        return cls(inputs, outputs, codes)


@dataclass(frozen=True)
class _Reference:
    """The plan and the kernels that recompute its layers, shared by all batches."""

    model: ir.Model
    plan: QuantPlan
    kernels: SiteKernels
    floats: FloatSites

    def is_computed_on_codes(self, site: Site) -> bool:
        """Return whether an integer kernel of the file computes a site.

        The file computes a site in floats if an operand or the bias is a float, if codes are wider
        than 8 bits, or if the site writes floats and no integer kernel does so.
        """
        if self.floats.qonnx:
            return False
        if site.output not in self.plan.grid_of and site.op not in WRITE_FLOATS:
            return False
        node = self.floats.nodes[site.name]
        operands = [v.name or "" for v in node.inputs if v is not None and is_float(v)]
        if any(self.plan.spec(name) is None for name in operands):
            return False
        specs = [self.plan.spec(name) for name in (*site.inputs, site.output)]
        return all(spec is None or spec.bits <= 8 for spec in specs)


class _BatchComparison:
    """Comparison of one batch of captures with the reference."""

    def __init__(self, reference: _Reference, captures: Captures, counts: ParityCounts) -> None:
        self.reference, self.plan, self.counts = reference, reference.plan, counts
        self.captures, self.codes = captures, captures.codes
        self.executor = reference.floats.executor
        # Grows with every compared value: later layers start from the file's own values.
        self.feeds: dict[str, Any] = dict(captures.inputs)

    def sites(self) -> None:
        """Compare the outputs of sites, by integer kernels or in floats as the file does."""
        outputs = self.captures.outputs
        for site in self.plan.sites.values():
            if any(v not in self.codes and v not in self.plan.codes for v in site.inputs):
                continue
            exact = self.reference.is_computed_on_codes(site)
            if not exact and not self._float_inputs_captured(site):
                continue
            expected = self._expected(site, exact)
            if site.output in self.codes:
                self._compare_codes(site.output, expected, exact)
            elif site.output in outputs:
                count = self.counts.integer if exact else self.counts.after_float
                count.add(*_as_codes(expected, outputs[site.output]))
                self.feeds[site.output] = outputs[site.output]

    def data_movement(self) -> None:
        """Compare the outputs of nodes that move codes unchanged."""
        nodes = nodes_by_name(self.reference.model.graph)
        for name in self.plan.data_movement_ops:
            node = nodes[name]
            source = (node.inputs[0].name if node.inputs[0] is not None else None) or ""
            if source not in self.codes:
                continue
            shapes = [v.name or "" for v in node.inputs[1:] if v is not None and not is_constant(v)]
            computed = self.executor(self.captures.inputs, None, shapes) if shapes else {}
            outputs = self.reference.kernels.data_movement(name, self.codes[source], computed)
            for value, expected in zip(node.outputs, outputs, strict=True):
                if (value.name or "") in self.codes:
                    self._compare_codes(value.name or "", expected, exact=True)

    def dynamic(self) -> None:
        """Compare products whose inputs were quantized dynamically."""
        model, outputs = self.reference.model, self.captures.outputs
        nodes = nodes_by_name(model.graph)
        for site in self.plan.dynamic.values():
            first = site.outputs[0]
            if first not in outputs:
                continue
            written = torch.tensor(outputs[first])
            with torch.inference_mode():
                expected = dynamic_site_output(model, self.plan, site, self._value, written)
            # An LSTM's gates are floats, and its state is rounded to 8 bits again.
            lstm = site.op == "LSTM"
            count = self.counts.after_float if lstm else self.counts.integer
            convert = _as_codes if lstm else _in_steps
            self.counts.add(count, first, *convert(expected, outputs[first]))
            names = [v.name or "" for v in nodes[site.name].outputs]
            self.feeds.update({name: outputs[name] for name in names if name in outputs})

    def float_values(self) -> None:
        """Compare quantized values that float operators computed, and quantized inputs."""
        inputs = self.captures.inputs
        quantized_inputs = [v for v in self.codes if v in inputs]
        rest = [v for v in self.codes if v not in self.feeds]
        floats = {name: torch.from_numpy(np.asarray(inputs[name])) for name in quantized_inputs}
        with torch.inference_mode():
            if rest:
                edges = raw_edges(self.reference.model, self.plan)
                floats |= self.executor(self.feeds, self._observe, rest, edges)
        for name in (*quantized_inputs, *rest):
            params = self.plan.params(name)
            if params is not None:
                expected = self.reference.floats.codes(floats[name], params)
                self._compare_codes(name, expected, exact=False)

    def _value(self, name: str) -> torch.Tensor:
        """Return a value as the file had it, else compute it from what the file had."""
        array = self.feeds.get(name, self.captures.outputs.get(name))
        if array is not None:
            return torch.tensor(array)
        constants = self.reference.floats.emitted_weight_only
        return self.executor(self.feeds, constants, [name])[name]

    def _observe(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        """Replace what readers of codes read: quantized inputs, and weights as emitted."""
        name, floats = value.name or "", self.reference.floats
        if name in self.captures.inputs and name in self.codes:
            return torch.from_numpy(_values(self.plan, name, self.codes))
        # A QONNX file shows no output of data movement: a site behind one is computed here.
        emitted = floats.emitted if floats.qonnx else floats.emitted_weight_only
        return emitted(value, tensor)

    def _compare_codes(self, name: str, expected: torch.Tensor, exact: bool) -> None:
        """Count differing codes of a value; ``exact``: by integer kernels on both sides."""
        spec, count = self.plan.spec(name), self.counts.integer
        if not exact:  # a float error is a larger part of a step of a grid with more bits
            wide = spec is not None and spec.bits > 8
            count = self.counts.wide if wide else self.counts.after_float
        self.counts.add(count, name, expected, self.codes[name])
        self.feeds[name] = _values(self.plan, name, self.codes)

    def _float_inputs_captured(self, site: Site) -> bool:
        """Return whether all float inputs of a site besides constants were captured."""
        inputs = self.reference.floats.nodes[site.name].inputs
        names = [v.name for v in inputs if v is not None and not is_constant(v) and is_float(v)]
        return all(name in self.codes or name in self.captures.outputs for name in names)

    def _expected(self, site: Site, exact: bool) -> torch.Tensor:
        """Compute a site from the file's inputs to it: codes where it rounds, else values."""
        if exact:
            return self.reference.kernels.site(site, self.codes)
        floats, outputs = self.reference.floats, self.captures.outputs
        names = [v.name or "" for v in floats.nodes[site.name].inputs if v is not None]
        feeds = {
            name: _values(self.plan, name, self.codes) if name in self.codes else outputs[name]
            for name in names
            if name in self.codes or name in outputs
        }
        return floats.site(site, feeds)


def _codes(plan: QuantPlan, name: str, array: np.ndarray) -> np.ndarray:
    """Return the codes of a captured value: codes, or floats on the grid (QONNX files)."""
    params = plan.params(name)
    if params is None:
        raise AssertionError(f"{name} was captured but the plan has no grid for it")
    return array if array.dtype.kind in "iu" else quantize(array, params)


def _values(plan: QuantPlan, name: str, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    params = plan.params(name)
    if params is None:
        raise AssertionError(f"{name} has codes but no grid")
    return np.asarray(dequantize(codes[name].astype(np.float32), params), np.float32)


def _step(got: np.ndarray, bits: int) -> float:
    """Return the step of a symmetric grid of so many bits over the array's range."""
    # 1e-30 for an array of zeros: no division by zero, and any difference shows.
    return max(float(np.abs(got).max()), 1e-30) / 2 ** (bits - 1)


def _in_steps(expected: torch.Tensor, got: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Return differences of floats in steps of 16 bits, and zeros to compare them with.

    Rounded each by itself, floats that differ in their last bit could become two codes.
    """
    actual = torch.from_numpy(np.asarray(got, np.float32))
    same = (expected == actual) | (expected.isnan() & actual.isnan())
    steps = torch.where(same, 0.0, (expected - actual) / _step(got, 16)).round()
    return steps, np.zeros(got.shape, np.float32)


def _as_codes(expected: torch.Tensor, got: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Return floats as 8-bit codes of their own range; finer differences show in their share."""
    step = _step(got, 8)
    return (expected / step).round(), np.rint(got / np.float32(step))
