"""A chain of layers whose outputs have the mean and deviation that their BatchNorm says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from models import Net

import qtool
from qtool.calibration import MinMax
from qtool.data.spool import spool_batches
from qtool.graph.queries import nodes_by_name
from qtool.loading import bind_shapes
from qtool.pipeline.calibration.grids import make_grids
from qtool.pipeline.stages import annotated, rewrite
from qtool.quant.plan import QuantPlan
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.model import Recipe
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.rewrites.folding.add_bias import add_bias
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageCache
from qtool.targets.loader import load_target


def chain(
    gamma: float = 1.0,
    beta: float = 0.0,
    channels: int = 4,
    kernel: int = 3,
    weight: float | None = None,
    clip: float | None = None,
    depthwise: bool = False,
    norm: bool = True,
) -> Net:
    """Three convolutions; BatchNorm and an activation behind the first two."""
    net = Net()
    x = net.input("x", "N", channels, 6, 6)
    for k in range(3):
        group = channels if depthwise and k == 1 else 1
        shape = (channels, channels // group, kernel, kernel)
        array = net.rng.normal(0, 0.5, shape) if weight is None else np.full(shape, weight)
        w = net.const(array)
        if k == 2:
            x = net.add("Conv", x, w, net.weight(channels), pads=[kernel // 2] * 4, out="y")
            break
        x = net.add("Conv", x, w, pads=[kernel // 2] * 4, group=group)
        if norm:
            # A variance that makes the folded factor 1: the weights stay as they are.
            ones = np.ones(channels)
            mean = array.sum((1, 2, 3)) * max(beta, 0.0) if k else 0 * ones
            vectors = (gamma * ones, beta * ones, mean, gamma**2 * ones)
            x = net.add("BatchNormalization", x, *map(net.const, vectors), epsilon=0.0)
        limits = [] if clip is None else [net.const(0.0), net.const(clip)]
        x = net.add("Clip" if limits else "Relu", x, *limits)
    return net.output(x)


def context_for(net: Net, folder: Path, scale: float = 0.005) -> Context:
    """The rewritten network with 32 samples of small normal inputs."""
    path = folder / "net.onnx"
    onnx.save(net.proto(), path)
    model = qtool.load(path)
    shape = (32, *(d for d in next(iter(model.inputs.values())).shape[1:]))
    batch = {"x": np.random.default_rng(1).normal(0, scale, shape).astype(np.float32)}
    target = load_target("onnxruntime-cpu")
    graph = model._graph.clone()
    bind_shapes(graph, {"x": shape})
    context = Context(
        model=graph,
        name="net",
        sha256=model.sha256,
        target=target,
        bits=resolve_bits(recipe().bits, graph, target),
        inputs=model.inputs,
        calibration=spool_batches([batch], folder),
        cache=StageCache(folder / "cache"),
    )
    rewrite(recipe(), context)
    add_bias(graph, context.bits.integer)
    return context


def plan_for(context: Context, bits: int = 8) -> QuantPlan:
    """A plan with calibrated grids."""
    context = replace(context, bits=replace(context.bits, weights=bits))
    return make_grids(context, annotated(context), MinMax())


def recipe() -> Recipe:
    data = {"model": "net.onnx", "calibrate": {"arrays": "in memory", "method": "minmax"}}
    return recipe_from_keywords(data, "here", Path.cwd(), files=False)


def share_bias(context: Context, plan: QuantPlan) -> tuple[QuantPlan, str]:
    """Let the last layer read the bias of the one before it; return the plan and the bias."""
    nodes = nodes_by_name(context.model.graph)
    second, last = [site for site in plan.sites.values() if site.weight][-2:]
    nodes[last.name].replace_input_with(2, nodes[second.name].inputs[2])
    sites = {**plan.sites, last.name: replace(last, bias=second.bias)}
    return replace(plan, sites=sites), second.bias or ""
