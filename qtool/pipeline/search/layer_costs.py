"""Measure what each layer costs and uses at each width, in one repaired plan of each width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qtool.annotation.layer_patterns import nodes_matching
from qtool.errors import RecipeError
from qtool.graph.queries import attribute, by_name, constant, dims, macs, nodes_by_name
from qtool.pipeline.calibration.grids import constrain_scales, weight_scheme
from qtool.pipeline.search.latency_table import LatencyTable
from qtool.pipeline.search.spread.ahead import scan_ahead
from qtool.pipeline.search.trial import TrialRunner, with_bits
from qtool.ptq.gptq import Gptq
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.search.mixed_precision import FLOAT_BITS, Geometry, Layer, Way, monotonic
from qtool.search.sensitivity import Scan
from qtool.steps.context import Context
from qtool.verification.file_size import file_bytes, file_parts, weight_widths
from qtool.verification.layers.table import total_macs
from qtool.weights.grids import weight_grids

# Samples of the scans: as many as this many multiply-accumulates allow, half the network a layer.
SCANNED_MACS = 2e11
MIN_SCANNED, MAX_SCANNED = 32, 128
# DynamicQuantizeLinear makes uint8.
DYNAMIC_BITS = 8


class NothingToChooseError(RecipeError):
    """Patterns set the width of every layer."""


@dataclass(frozen=True)
class OtherLayers:
    """The network outside the layers whose widths are chosen: layers that stay float, and the like.

    Attributes:
        parameters: number of weights.
        bits: of the weights together.
        macs: multiply-accumulates of one sample.
        bops: multiply-accumulates times the bits of both operands, 32 for floats.
    """

    parameters: int = 0
    bits: float = 0.0
    macs: int = 0
    bops: float = 0.0


@dataclass(frozen=True)
class Scored:
    """One width for all layers.

    Attributes:
        way: the width.
        plan: each layer is repaired alone.
        costs: layer -> noise at the output with this layer alone quantized, relative to its power.
        bytes: layer -> bytes in the file.
        file_bytes: of the whole file.
        others: what lies outside the layers.
    """

    way: Way
    plan: QuantPlan
    costs: Mapping[str, float]
    bytes: Mapping[str, float]
    file_bytes: int
    others: OtherLayers


def uniform(recipe: Recipe, way: Way) -> Recipe:
    """Return the recipe with one width for all layers that no pattern names.

    Args:
        recipe: to change.
        way: the width, in integers.
    """
    return with_bits(recipe, {}, weights=way.weights, activations=way.activations)


def score(
    runner: TrialRunner, recipe: Recipe, ways: Sequence[Way], samples: int = MAX_SCANNED
) -> tuple[list[Scored], Context]:
    """Measure all layers at each width, alone, and after a repair of their own.

    What rounding to nearest costs says little about what is left after a repair, so weights are
    rounded by GPTQ, each layer against the inputs of the network at the widest width, unless the
    recipe's `ptq` is empty. Noise powers of independent errors add up, divergences do not.

    Args:
        runner: of the search.
        recipe: the base.
        ways: the widths, narrowest first.
        samples: that a scan reads, at most.

    Returns:
        The widths, and the context of the widest.
    """
    scored: list[Scored] = []
    for activations in dict.fromkeys(way.activations for way in ways):
        group = [way for way in ways if way.activations == activations]
        plans, context = _plans(runner, recipe, group)
        if recipe.ptq is None or recipe.ptq:
            # The first plan is the network around each layer.
            plans = Gptq().round_alone(plans[::-1], context)[::-1]
        scans = [_scan(runner, plan, context, samples) for plan in plans]
        scan_ahead(runner, _widest(recipe, group), scans)
        for way, scan in zip(group, scans, strict=True):
            scored.append(_scored(runner, way, scan))
            context.progress("search: widths", len(scored), len(ways))
    scored.sort(key=lambda s: ways.index(s.way))
    return scored, context


def _plans(
    runner: TrialRunner, recipe: Recipe, ways: Sequence[Way]
) -> tuple[list[QuantPlan], Context]:
    """Return calibrated plans that differ in the weights' widths, and the context of the last."""
    calibrated, context = runner.quantized(_widest(recipe, ways))
    weighted = [name for name, site in calibrated.sites.items() if site.weight is not None]
    fixed = fixed_layers(runner, recipe, weighted)
    if fixed >= set(weighted):
        raise NothingToChooseError(
            "every layer's width is set in bits.layers, so that there is nothing to choose; "
            "remove the key, or a pattern",
            ("bits", "budget"),
        )
    weights = [calibrated.sites[name].weight or "" for name in weighted if name not in fixed]
    # Weights that no layer reads, such as embeddings, have the recipe's width beside every choice.
    stored = sorted(calibrated.weight_only - set(weights))
    if stored and isinstance(recipe.bits.weights, int):
        calibrated = _narrowed(recipe, calibrated, context, stored, recipe.bits.weights)
    plans = [_narrowed(recipe, calibrated, context, weights, way.weights) for way in ways[:-1]]
    return [*plans, calibrated], context


def _widest(recipe: Recipe, ways: Sequence[Way]) -> Recipe:
    """Return the recipe at the widest width, without steps: its graph is that of all widths."""
    return uniform(recipe, ways[-1]).model_copy(update={"ptq": ()})


def _narrowed(
    recipe: Recipe, plan: QuantPlan, context: Context, weights: Sequence[str], bits: int | None
) -> QuantPlan:
    """Return a calibrated plan with weights on grids of other bits."""
    grids, codes = dict(plan.grids), dict(plan.codes)
    for name in weights:
        spec = plan.spec(name)
        if spec is not None and bits is not None:
            grids[plan.grid_of[name]] = replace(spec, bits=bits)
            codes.pop(name, None)
    plan = replace(plan, grids=grids, codes=codes)
    plan = weight_grids(context.model, plan, weight_scheme(recipe, plan))
    return constrain_scales(context, plan)


def _scan(runner: TrialRunner, plan: QuantPlan, context: Context, samples: int) -> Scan:
    """Return the scan of a plan, on as many samples as its work allows."""
    layers = sum(site.weight is not None for site in plan.sites.values())
    work = max(total_macs(context.model), 1) * max(layers, 1) / 2
    count = min(int(np.clip(SCANNED_MACS / work, MIN_SCANNED, MAX_SCANNED)), samples)
    return runner.scan(plan, context, count)


def _scored(runner: TrialRunner, way: Way, scan: Scan) -> Scored:
    plan, context, rows = scan.plan, scan.context, scan.run()
    emitted = runner.emitted(plan, context, runner.folder / "scored.onnx")
    _, parts = file_parts(emitted.model)
    costs = {row.site: 0.0 if row.sqnr_db is None else 10 ** (-row.sqnr_db / 10) for row in rows}
    sizes = {name: float(part.total) for name, part in parts.items()}
    others = other_layers(context, emitted.plan)
    return Scored(way, plan, costs, sizes, file_bytes(emitted.path), others)


def layer_costs(
    scored: Sequence[Scored],
    context: Context,
    fixed: set[str],
    table: LatencyTable | None,
) -> tuple[list[Layer], dict[str, list[Way]]]:
    """Combine the widths into the layers of an integer program.

    Args:
        scored: the widths; the last one is the widest.
        context: the graph of the widest.
        fixed: layers that keep the width of their pattern.
        table: times; None where float is no way.

    Returns:
        The layers in graph order, and the ways that each may take.
    """
    widest = scored[-1]
    nodes, values = nodes_by_name(context.model.graph), by_name(context.model.graph)
    layers, ways = [], {}
    for name, site in widest.plan.sites.items():
        if site.weight is None:
            continue
        own = {s.way: s for s in scored if name in s.costs}
        if name in fixed:
            own = {_own_way(widest.plan, site.weight, site.inputs[0]): widest}
        costs = {way: s.costs[name] for way, s in own.items()}
        sizes = {way: s.bytes.get(name, 0.0) for way, s in own.items()}
        weight = constant(values[site.weight])
        count = 0 if weight is None else weight.size
        milliseconds = {}
        if table is not None:
            milliseconds = {way: table.integer_ms.get(name, 0.0) for way in own}
            if name not in fixed:
                in_float = Way(None, None)
                costs[in_float], sizes[in_float] = 0.0, 4.0 * count
                milliseconds[in_float] = table.float_ms.get(name, 0.0)
        form = geometry(nodes[name])
        layers.append(
            Layer(name, count, macs(nodes[name]), monotonic(costs), sizes, milliseconds, form)
        )
        ways[name] = list(costs)
    return layers, ways


def geometry(node: ir.Node) -> Geometry:
    """Return the form of a convolution or matrix product.

    Args:
        node: with constant weights.
    """
    weight = [d for d in dims(node.inputs[1]) or () if isinstance(d, int)]
    read = [d for d in (dims(node.inputs[0]) or ())[1:] if isinstance(d, int)]
    if not node.op_type.startswith("Conv"):
        transposed = bool(attribute(node, "transB", 0))
        inputs, outputs = weight[:-3:-1] if transposed else weight[-2:]
        return Geometry(inputs, outputs, size=int(np.prod(read[:-1], dtype=np.int64)))
    groups = int(attribute(node, "group", 1))
    outputs, inputs = (weight[0], weight[1] * groups)
    if node.op_type == "ConvTranspose":
        inputs, outputs = weight[0], weight[1] * groups
    strides = attribute(node, "strides", None) or [1]
    size = int(np.prod(read[1:], dtype=np.int64))
    return Geometry(inputs, outputs, weight[-1], int(strides[0]), size, 1 < groups == inputs)


def fixed_layers(runner: TrialRunner, recipe: Recipe, names: Sequence[str]) -> set[str]:
    """Return the layers that keep their width: those a pattern names, or that a rewrite made.

    Args:
        runner: of the search; its graph is as it was read.
        recipe: with the patterns.
        names: of all layers with weights.
    """
    model = runner.prepared.loaded.model
    original = set(nodes_by_name(model.graph))
    fixed = {name for name in names if name not in original}
    for pattern in recipe.bits.layers:
        fixed |= nodes_matching(model, pattern) & set(names)
    return fixed


def other_layers(context: Context, plan: QuantPlan) -> OtherLayers:
    """Return what lies outside the sites of a plan: float layers, weights that float ops read.

    The bit operations of a product are its multiply-accumulates times the bits of both operands,
    and 32 x 32 in floats.

    Source: van Baalen et al. 2020, Bayesian Bits, sec. 4, arXiv:2005.07093.

    Args:
        context: the rewritten graph.
        plan: frozen.
    """
    own = {site.weight for site in plan.sites.values()}
    widths = {
        name: width for name, width in weight_widths(context.model, plan).items() if name not in own
    }
    total, bops = 0, 0.0
    inside = {name for site in plan.sites.values() for name in site.nodes}
    for node in context.model.graph:
        if node.name not in inside and (count := macs(node)):
            weight = node.inputs[1].name if node.inputs[1] is not None else None
            _, weight_bits = widths.get(weight or "", (0, FLOAT_BITS))
            read_bits = DYNAMIC_BITS if node.name in plan.dynamic else FLOAT_BITS
            total += count
            bops += count * weight_bits * read_bits
    return OtherLayers(
        parameters=sum(count for count, _ in widths.values()),
        bits=sum(count * bits for count, bits in widths.values()),
        macs=total,
        bops=bops,
    )


def _own_way(plan: QuantPlan, weight: str, read: str) -> Way:
    return Way(plan.qparams(weight).spec.bits, plan.qparams(read).spec.bits)
