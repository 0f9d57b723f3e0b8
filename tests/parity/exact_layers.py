"""Comparison of one quantized op in ONNX Runtime and in OrtKernels, on grids of the test."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qtool.annotation.annotator import annotate
from qtool.emitters import emit_qdq
from qtool.loading import infer_shapes
from qtool.loading.names import assign_node_names
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import PerTensor, QuantParams, dequantize
from qtool.runtime.ort_options import session_options
from qtool.simulation.ort_kernels import OrtKernels
from qtool.targets.loader import load_target
from qtool.verification.captured_outputs import capturable_values, with_outputs

TARGET = load_target("onnxruntime-cpu")
Grid = tuple[float, int]  # scale and zero point of a uint8 activation


@dataclass(frozen=True)
class Case:
    """One node, `op`, that reads `x0`, `x1` ... and writes `y` (or `y0`, `y1` ...).

    Attributes:
        op: its type.
        shapes: of its activation inputs.
        attributes: of the op.
        weight: shape of its weight, or None.
        bias: output channels of its bias; 0 for none.
        extra: constant inputs behind the activations, such as Reshape's shape.
        quantized_output: a product reads the outputs as codes; False leaves them float.
        outputs: their number.
        weight_codes: the smallest and largest.
        convs: the op lies between convolutions, which the runtime computes channels last.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: dict = field(default_factory=dict)
    weight: tuple[int, ...] | None = None
    bias: int = 0
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    quantized_output: bool = True
    outputs: int = 1
    weight_codes: tuple[int, int] = (-127, 127)
    convs: bool = False

    @property
    def inputs(self) -> list[str]:
        return [f"x{k}" for k in range(len(self.shapes))]

    @property
    def operands(self) -> list[str]:
        """Activation inputs of the op."""
        return [f"{name}_made" if self.convs else name for name in self.inputs]

    def model(self) -> ir.Model:
        constants = dict(self.extra)
        if self.weight is not None:
            constants["w"] = np.zeros(self.weight, np.float32)
        if self.bias:
            constants["b"] = np.zeros(self.bias, np.float32)
        outs = ["y"] if self.outputs == 1 else [f"y{k}" for k in range(self.outputs)]
        operands = [*self.operands, *constants]
        nodes = [helper.make_node(self.op, operands, outs, "op", **self.attributes)]
        if self.convs:
            for name, shape in zip(self.inputs, self.shapes, strict=True):
                nodes.insert(0, self._conv(name, f"{name}_made", shape[1], shape[1], constants))
        outputs = [f"{out}_end" for out in outs] if self.quantized_output else outs
        if self.quantized_output:
            last = onnx.shape_inference.infer_shapes(self._proto(nodes, outs, constants))
            for out, end, info in zip(outs, outputs, last.graph.output, strict=True):
                sizes = [d.dim_value for d in info.type.tensor_type.shape.dim]
                if self.convs:
                    nodes.append(self._conv(out, end, sizes[1], 1, constants))
                    continue
                constants[f"{out}_w"] = np.full((sizes[-1], 1), 0.3, np.float32)
                nodes.append(helper.make_node("MatMul", [out, f"{out}_w"], [end], f"{out}_mm"))
        model = ir.from_proto(self._proto(nodes, outputs, constants))
        assign_node_names(model)
        infer_shapes(model)
        return model

    @staticmethod
    def _conv(source: str, out: str, wide: int, channels: int, constants: dict) -> onnx.NodeProto:
        constants[f"{out}_w"] = np.zeros((channels, wide, 1, 1), np.float32)
        return helper.make_node("Conv", [source, f"{out}_w"], [out], f"{out}_conv")

    def _proto(self, nodes: list, outputs: list[str], constants: dict) -> onnx.ModelProto:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "g",
            [info(n, TensorProto.FLOAT, s) for n, s in zip(self.inputs, self.shapes, strict=True)],
            [info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@dataclass(frozen=True)
class Scales:
    """Grids of a case: of every input, of the output; the weight's scale.

    With ``vary`` the weight scales of the channels vary around ``weight``.
    """

    inputs: tuple[Grid, ...]
    output: Grid
    weight: float = 0.01
    vary: bool = True


def random_scales(case: Case, rng: np.random.Generator) -> Scales:
    """Draw scales without pattern; products fill the output's codes and seldom saturate."""
    grids = [(float(rng.uniform(0.005, 0.05)), _zero(rng)) for _ in range(len(case.shapes) + 1)]
    (first, *_, (out, _)) = grids
    return Scales(tuple(grids[:-1]), grids[-1], float(rng.uniform(5e-4, 2e-3)) * out / first[0])


def tied_scales(case: Case, rng: np.random.Generator) -> Scales:
    """Draw round decimals and powers of two, whose ratios put many values at a half."""
    grids = [
        (float(rng.choice([0.01, 0.02, 0.03, 0.04, 0.25, 0.5, 1])), _zero(rng))
        for _ in range(len(case.shapes) + 1)
    ]
    if rng.random() < 0.5:  # a ratio of exactly 1, 1/2 or 2
        ratio = float(rng.choice([1, 0.5, 2]))
        grids = [(grids[0][0], zero) for _, zero in grids]
        grids[-1] = (grids[0][0] / ratio, grids[-1][1])
    if case.op == "Mul":
        grids[-1] = (grids[0][0] * grids[1][0] * float(rng.choice([2, 64, 100])), grids[-1][1])
    ratio = float(rng.choice([2**-9, 2**-10, 2**-11, 0.002, 0.001, 0.0005]))
    weight = ratio * grids[-1][0] / grids[0][0]
    return Scales(tuple(grids[:-1]), grids[-1], weight, vary=False)


def _zero(rng: np.random.Generator) -> int:
    return int(rng.choice([0, 255, 128, rng.integers(0, 256)]))


def frozen_plan(
    case: Case,
    model: ir.Model,
    scales: Scales,
    rng: np.random.Generator,
    float_nodes: frozenset[str] = frozenset(),
) -> QuantPlan:
    """Return the case's frozen plan on the grids of ``scales``, with random weights and bias."""
    plan = annotate(model, TARGET, Bits(layers=dict.fromkeys(float_nodes, FLOAT)))
    grids, codes = dict(plan.grids), {}
    requested = dict(zip(case.operands, scales.inputs, strict=True))
    requested |= dict(zip(case.inputs, scales.inputs, strict=True)) if case.convs else {}
    for name, grid in plan.grid_of.items():
        spec = plan.spec(name)
        if spec.signed:
            continue
        scale, zero = requested.get(name, scales.output)
        if name in requested or grid not in {plan.grid_of.get(n) for n in requested}:
            grids[grid] = QuantParams(spec, np.float32(scale), np.int32(zero))
    for site in plan.sites.values():
        if site.weight is None:
            continue
        spec, shape = plan.spec(site.weight), model.graph.initializers[site.weight].shape.numpy()
        axis = () if isinstance(spec.granularity, PerTensor) else shape[spec.granularity.axis]
        step = np.full(axis, scales.weight if site.name == "op" else 0.01)
        if scales.vary and site.name == "op":
            step *= rng.uniform(0.5, 1.5, axis)
        grids[site.weight] = QuantParams(spec, step.astype(np.float32), np.zeros(axis, np.int32))
        low, high = case.weight_codes if site.name == "op" else (-127, 127)
        codes[site.weight] = rng.integers(low, high + 1, shape).astype(np.int8)
    plan = replace(plan, grids=grids, codes=codes)
    for site in plan.sites.values():
        if site.bias is not None:
            model.graph.initializers[site.bias].const_value = ir.tensor(
                rng.normal(0, 1, case.bias).astype(np.float32)
            )
    return freeze(model, plan)


def feeds_of(case: Case, plan: QuantPlan, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw inputs on their grids, all codes equally likely."""
    feeds = {}
    for name, shape in zip(case.inputs, case.shapes, strict=True):
        codes = rng.integers(0, 256, shape).astype(np.float32)
        feeds[name] = np.asarray(dequantize(codes, plan.params(name)), np.float32)
    return feeds


def in_runtime(
    model: ir.Model,
    plan: QuantPlan,
    feeds: dict[str, np.ndarray],
    optimized: Path | None = None,
) -> dict[str, np.ndarray]:
    """Run the emitted file with all optimizations; save the optimized graph to ``optimized``."""
    emitted = emit_qdq(model, plan, TARGET)
    names = capturable_values(emitted, plan)
    file = ir.to_proto(with_outputs(emitted, names)).SerializeToString()
    options = session_options(1)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(file, options)
    return dict(zip(names, session.run(list(names), feeds), strict=True))


@dataclass
class Comparison:
    """Outputs of one draw: those of the runtime and those of OrtKernels."""

    runtime: list[np.ndarray]
    exact: list[np.ndarray]

    @property
    def off(self) -> int:
        """Number of codes that differ."""
        pairs = zip(self.runtime, self.exact, strict=True)
        return sum(int(np.count_nonzero(a != b)) for a, b in pairs)

    @property
    def inside(self) -> float:
        """Share of values that are not saturated."""
        values = np.concatenate([a.reshape(-1) for a in self.runtime])
        return float(((values > 0) & (values < 255)).mean())


def with_scale_kind(plan: QuantPlan, kind: str) -> QuantPlan:
    """Return the plan with another scale kind on every grid; scales stay the same."""
    grids = {
        name: replace(grid, spec=replace(grid.spec, scale_kind=kind))
        for name, grid in plan.grids.items()
        if isinstance(grid, QuantParams) and grid.spec.bits < 32
    }
    return replace(plan, grids={**plan.grids, **grids})


def draw(
    case: Case,
    scales: Scales,
    seed: int,
    optimized: Path | None = None,
    kernels_of: Callable[[ir.Model, QuantPlan], Any] = OrtKernels,
    kind: str = "float",
) -> Comparison:
    """Compute a case on random codes both ways; ``kind`` is the scale kind of its grids."""
    rng = np.random.default_rng(seed)
    model = case.model()
    plan = with_scale_kind(frozen_plan(case, model, scales, rng), kind)
    seen = in_runtime(model, plan, feeds_of(case, plan, rng), optimized)
    codes = {n.removesuffix("_quantized"): a for n, a in seen.items() if n.endswith("_quantized")}
    kernels = kernels_of(model, plan)
    outputs = [v.name or "" for v in kernels.nodes["op"].outputs]
    runtime = [codes.get(n, seen.get(n)) for n in outputs]
    if "op" in plan.data_movement_ops:
        exact = kernels.data_movement("op", codes[case.operands[0]])
    else:
        exact = [kernels.site(plan.sites["op"], codes)]
    return Comparison(runtime, [tensor.numpy() for tensor in exact])
