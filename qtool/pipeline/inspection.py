"""Describe a float model, or the file and the report of a run, for ``qtool inspect``."""

import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from qtool.errors import QtoolError
from qtool.graph.queries import WEIGHTED_OPS, constant, dims, macs, parameters
from qtool.loading import Loaded, quantized_nodes, read_graph
from qtool.pipeline.context import RunOptions
from qtool.pipeline.inputs.specs import input_specs
from qtool.pipeline.load_model import load_trusted
from qtool.pipeline.prepare import prepare
from qtool.pipeline.provenance import read_provenance
from qtool.quant.plan_io import read_plan
from qtool.recipe.loader import load_recipe
from qtool.recipe.sections.network import carries_code
from qtool.report.latency_schema import NodeTime
from qtool.report.report import Report
from qtool.report.schema import Provenance
from qtool.rewrites import REWRITES
from qtool.steps.stage_cache import temporary_cache
from qtool.targets.loader import load_target
from qtool.verification.kernel_times import node_times
from qtool.verification.ort_process import run_tasks
from qtool.verification.tasks import Profile, write_feeds


@dataclass(frozen=True)
class LayerInfo:
    """A layer with weights.

    Attributes:
        name: of the node.
        op: its operator.
        shape: of its output; the input's name of a size, or None, where it is open.
        parameters: numbers in its constants.
        macs: multiply-accumulates of one sample; 0 where shapes are unknown.
        weight_range: smallest and largest weight; None where the weights are computed.
    """

    name: str
    op: str
    shape: tuple[int | str | None, ...] | None
    parameters: int
    macs: int
    weight_range: tuple[float, float] | None


@dataclass(frozen=True)
class ModelInfo:
    """A float model.

    Attributes:
        path: of the file, or the name of a torch network.
        opset: of the file; of a torch network, that of its export.
        parameters: of the whole model.
        inputs: name -> description.
        outputs: name -> shape.
        layers: those with weights, in graph order.
        operators: operator -> count.
        patterns: rewrite of the target -> places where it applies.
        quantized: quantization operator -> count; the rest describes the floats they stand for.
        provenance: of a file that qtool wrote.
    """

    path: str
    opset: int
    parameters: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    layers: tuple[LayerInfo, ...]
    operators: dict[str, int]
    patterns: dict[str, int]
    quantized: dict[str, int] = field(default_factory=dict)
    provenance: Provenance | None = None


@dataclass(frozen=True)
class RunInfo:
    """The written file of a run.

    Attributes:
        report: of the run.
        float_nodes: (node, operator, reason) of each node that computes in floats.
        times: slowest kernel first; empty where they could not be measured.
        times_missing: the reason for that.
    """

    report: Report
    float_nodes: tuple[tuple[str, str, str], ...]
    times: tuple[NodeTime, ...]
    times_missing: str = ""


def inspect_model(
    path: Path, target: str = "onnxruntime-cpu", options: RunOptions | None = None
) -> ModelInfo:
    """Describe a float model: layers, shapes, parameters, MACs, weight ranges, patterns.

    Args:
        path: an ONNX file, or a .pt2 or .pt file of torch.
        target: a target, whose rewrites are tried.
        options: trust_code and progress are used; None: the defaults.

    Raises:
        QtoolError: the model cannot be loaded.
    """
    chosen, options = load_target(target), options or RunOptions()
    opset, quantized = (None, {}) if carries_code(path) else _read_facts(path)
    with temporary_cache() as cache:
        options = replace(options, requantize=bool(quantized))
        loaded = load_trusted(path, chosen.opset, cache, options)
        info = replace(_model_info(loaded), quantized=quantized)
        info = info if opset is None else replace(info, opset=opset)
        # A rewrite counts the places where its pattern occurs; later ones see its result, as in a
        # run, so they are applied to this copy in memory.
        counts = {
            name: REWRITES[name](loaded.model, lambda node: True)
            for name in chosen.rewrites
            if name in REWRITES
        }
    return replace(info, patterns={name: count for name, count in counts.items() if count})


def _read_facts(path: Path) -> tuple[int, dict[str, int]]:
    """Return a file's opset and quantization operators: operator -> count, most frequent first."""
    model, _ = read_graph(path)
    counts = Counter(node.op_type for node in quantized_nodes(model))
    return model.opset_imports.get("", 1), dict(counts.most_common())


def _model_info(loaded: Loaded) -> ModelInfo:
    graph = loaded.model.graph
    # Shape inference makes up names for sizes that it cannot compute; only the inputs' own help.
    symbols = {d for v in graph.inputs for d in dims(v) or () if isinstance(d, str)}
    return ModelInfo(
        path=loaded.shown,
        opset=loaded.model.opset_imports.get("", 1),
        parameters=parameters(graph),
        inputs={n: s.describe() for n, s in input_specs(loaded.model, loaded.shown)[0].items()},
        outputs={v.name or "": f"{_type(v)} {_shape(dims(v))}" for v in graph.outputs},
        layers=tuple(layer for node in graph if (layer := _layer(node, symbols)) is not None),
        operators=dict(Counter(node.op_type for node in graph).most_common()),
        patterns={},
        provenance=read_provenance(loaded.model.metadata_props),
    )


def _layer(node: ir.Node, symbols: set[str]) -> LayerInfo | None:
    """Describe a node with weights; None for other nodes. ``symbols``: names of input sizes."""
    shape = dims(node.outputs[0])
    constants = [v for v in node.inputs if v is not None and constant(v) is not None]
    if node.op_type not in (*WEIGHTED_OPS, "LSTM", "GRU", "RNN", "Gather") or not constants:
        return None
    weight = constant(node.inputs[0 if node.op_type == "Gather" else 1])
    if node.op_type == "Gather" and (weight is None or weight.dtype.kind != "f"):
        return None  # a Gather without a table moves values
    return LayerInfo(
        name=node.name or "",
        op=node.op_type,
        shape=None
        if shape is None
        else tuple(d if isinstance(d, int) or d in symbols else None for d in shape),
        parameters=sum(a.size for v in constants if (a := constant(v)) is not None),
        macs=macs(node),
        weight_range=(float(weight.min()), float(weight.max()))
        if weight is not None and weight.size
        else None,
    )


def inspect_run(folder: Path, options: RunOptions | None = None) -> RunInfo:
    """Describe the file of a run: bits, kernels, why layers stay float, time by kernel.

    The time is measured on the first evaluation sample of the run's own recipe. Where that data is
    not at hand any more, the rest is described all the same.

    Args:
        folder: the run folder.
        options: trust_code, threads and progress are used; None: the defaults.

    Raises:
        QtoolError: the folder does not hold a finished run.
    """
    options = options or RunOptions()
    report = Report.read(folder)
    plan = read_plan(folder / "plan.json")
    model, _ = read_graph(folder / report.output.path)
    ops = {node.name: node.op_type for node in model.graph}
    float_nodes = tuple(
        (name, ops.get(name, "removed"), reason) for name, reason in plan.float_nodes.items()
    )
    try:
        times = _kernel_times(folder, report.output.path, options)
    except QtoolError as error:
        return RunInfo(report, float_nodes, (), str(error))
    return RunInfo(report, float_nodes, times)


def _kernel_times(folder: Path, file: str, options: RunOptions) -> tuple[NodeTime, ...]:
    """Measure the time of each kernel on the first evaluation sample, slowest first."""
    recipe = load_recipe(folder / "recipe.yaml")
    with temporary_cache() as cache, tempfile.TemporaryDirectory(prefix="qtool-") as scratch:
        prepared = prepare(recipe, cache, options)
        feeds = Path(scratch) / "feeds.npz"
        write_feeds(feeds, prepared.first_batch())
        task = Profile(str(folder / file), str(feeds), scratch, threads=options.threads or 1)
        result = run_tasks((task,), Path(scratch), options.progress)[task]
    return tuple(node_times(result))


def _type(value: ir.Value) -> str:
    """Return the element type of a value as numpy calls it."""
    return "of unknown type" if value.dtype is None else str(value.dtype.numpy())


def _shape(shape: tuple[int | str | None, ...] | None) -> str:
    """Format a shape; ? for an open size."""
    if shape is None:
        return "of unknown shape"
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"
